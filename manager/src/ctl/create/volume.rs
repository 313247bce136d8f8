//! `-v`, `--mount` and `--tmpfs`, as docker reads them.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use crate::oci::{Bind, Tmpfs};

const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// Reads `SOURCE:TARGET[:OPTIONS]`. A folder of the host that is not there is made, as docker does.
pub fn volume(text: &str) -> Result<Bind> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [_] => bail!("--volume {text}: anonymous volumes are not supported: name a folder of the host"),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => bail!("--volume {text}: not SOURCE:TARGET[:OPTIONS]"),
    };
    let named = !source.starts_with(['/', '.']);
    ensure!(!named, "--volume {text}: named volumes are not supported: begin a folder of the host with / or ./");
    check_target("--volume", text, target)?;
    let (mut propagation, mut read_only) = ("rprivate", false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // For SELinux, which is off wherever we were run; for other systems than Linux.
            "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            option if PROPAGATIONS.contains(&option) => propagation = option,
            other => bail!("--volume {text}: unknown option {other}"),
        }
    }
    let source = std::path::absolute(source).with_context(|| format!("--volume {text}"))?;
    if let Err(error) = fs::metadata(&source) {
        ensure!(error.kind() == std::io::ErrorKind::NotFound, "--volume {text}: {}", super::words(&error));
        fs::create_dir_all(&source).map_err(|error| anyhow::anyhow!("--volume {text}: {}", super::words(&error)))?;
    }
    let mode = if read_only { "rro" } else { "rw" };
    bind(&source.to_string_lossy(), target, ["rbind", propagation, mode])
}

fn bind<const N: usize>(source: &str, target: &str, options: [&str; N]) -> Result<Bind> {
    // Links are followed now, in our view of the host: the runtime would take the last one for what it is.
    let source = fs::canonicalize(source).map_err(|error| anyhow::anyhow!("{source}: {}", super::words(&error)))?;
    Ok(Bind {
        source: source.to_string_lossy().into_owned(),
        target: target.to_owned(),
        options: options.map(str::to_owned).to_vec(),
    })
}

fn check_target(flag: &str, text: &str, target: &str) -> Result<()> {
    ensure!(target.starts_with('/'), "{flag} {text}: the target {target:?} is not an absolute path");
    ensure!(!target.trim_matches('/').is_empty(), "{flag} {text}: the target cannot be /");
    Ok(())
}

/// What `--mount` asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Mounted {
    Bind(Bind),
    Tmpfs(Tmpfs),
}

/// Reads `type=…,source=…,target=…,…`.
pub fn mount(text: &str) -> Result<Mounted> {
    let wrong = |why: String| anyhow::anyhow!("--mount {text}: {why}");
    let (mut kind, mut source, mut target) = ("volume", None, None);
    let (mut read_only, mut recursive, mut propagation) = (false, "", "rprivate");
    let (mut size, mut mode) = (None, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let given = || value.ok_or_else(|| wrong(format!("{key} needs a value")));
        match key.to_ascii_lowercase().as_str() {
            "type" => kind = given()?,
            "source" | "src" => source = Some(given()?),
            "target" | "destination" | "dst" => target = Some(given()?),
            "readonly" | "ro" => {
                read_only = match value {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => return Err(wrong(format!("{key}={other} is neither true nor false"))),
                }
            }
            "bind-propagation" => {
                let value = given()?;
                let known = PROPAGATIONS.iter().find(|known| **known == value);
                propagation = known.ok_or_else(|| wrong(format!("unknown propagation {value}")))?;
            }
            "bind-recursive" => recursive = given()?,
            "bind-nonrecursive" => recursive = "disabled",
            "tmpfs-size" => size = Some(super::super::size::parse(given()?).map_err(&wrong)?),
            "tmpfs-mode" => {
                let bits = u32::from_str_radix(given()?, 8).ok().filter(|bits| *bits <= 0o7777);
                mode = Some(bits.ok_or_else(|| wrong("tmpfs-mode is not an octal number".into()))?);
            }
            "consistency" => {}
            other => return Err(wrong(format!("unknown key {other:?}"))),
        }
    }
    let target = target.ok_or_else(|| wrong("target is missing".into()))?;
    check_target("--mount", text, target)?;
    match kind {
        "bind" => {
            let source = source.ok_or_else(|| wrong("source is missing".into()))?;
            ensure!(source.starts_with('/'), wrong(format!("the source {source:?} is not an absolute path")));
            ensure!(size.is_none() && mode.is_none(), wrong("tmpfs-size and tmpfs-mode are for type=tmpfs".into()));
            fs::metadata(source)
                .map_err(|error| wrong(format!("bind source path {source}: {}", super::words(&error))))?;
            let (bind_option, ro_option) = match recursive {
                "" | "enabled" => ("rbind", "rro"),
                "disabled" => ("bind", "ro"),
                "writable" => ("rbind", "ro"),
                "readonly" if read_only && propagation == "rprivate" => ("rbind", "rro"),
                "readonly" => return Err(wrong("bind-recursive=readonly needs readonly and rprivate".into())),
                other => return Err(wrong(format!("unknown bind-recursive={other}"))),
            };
            let mode = if read_only { ro_option } else { "rw" };
            Ok(Mounted::Bind(bind(source, target, [bind_option, propagation, mode])?))
        }
        "tmpfs" => {
            ensure!(source.is_none(), wrong("type=tmpfs has no source".into()));
            let mut options: Vec<String> = size.map(|size| format!("size={size}")).into_iter().collect();
            options.extend(mode.map(|mode| format!("mode={mode:o}")));
            options.extend(read_only.then(|| "ro".to_owned()));
            Ok(Mounted::Tmpfs(Tmpfs { target: target.to_owned(), options }))
        }
        "volume" => Err(wrong("type=volume is not supported: use type=bind with a folder of the host".into())),
        other => Err(wrong(format!("unknown type {other:?}: bind and tmpfs are supported"))),
    }
}

/// Reads `TARGET[:OPTIONS]`.
pub fn tmpfs(text: &str) -> Result<Tmpfs> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    check_target("--tmpfs", text, target)?;
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Tmpfs { target: target.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_folder_of_the_host_with_docker_s_options() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().canonicalize().unwrap().display().to_string();
        let options = |text: &str| volume(&format!("{source}:/data{text}")).map(|bind| bind.options.join(","));
        assert_eq!(options("").unwrap(), "rbind,rprivate,rw");
        assert_eq!(options(":ro").unwrap(), "rbind,rprivate,rro");
        assert_eq!(options(":rw,rshared,z").unwrap(), "rbind,rshared,rw");
        let missing = format!("{source}/deep/missing");
        assert_eq!(volume(&format!("{missing}:/x")).unwrap().source, missing, "made, as docker does");
        for (bad, why) in [
            ("/data", "anonymous"),
            ("name:/data", "named volumes"),
            ("/a:b", "absolute"),
            ("/a:/", "cannot be /"),
            ("/a:/b:nocopy", "unknown option"),
            ("/a:/b:ro:x", "not SOURCE"),
        ] {
            assert!(volume(bad).unwrap_err().to_string().contains(why), "{bad}");
        }
    }

    #[test]
    fn a_mount_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().canonicalize().unwrap().display().to_string();
        let Mounted::Bind(bind) = mount(&format!("type=bind,src={source},dst=/x,readonly")).unwrap() else { panic!() };
        assert_eq!((bind.target.as_str(), bind.options.join(",").as_str()), ("/x", "rbind,rprivate,rro"));
        let Mounted::Tmpfs(tmpfs) = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap() else {
            panic!()
        };
        assert_eq!(tmpfs.options, ["size=1048576", "mode=1770"]);
        for (bad, why) in [
            ("src=x,dst=/x", "type=volume"),
            ("type=bind,dst=/x", "source is missing"),
            ("type=bind,src=/none/such,dst=/x", "no such file or directory"),
            ("type=tmpfs", "target is missing"),
            ("type=tmpfs,target=/x,color=red", "unknown key"),
            ("type=cluster,target=/x", "unknown type"),
            ("type=bind,src=/,dst=/x,ro=maybe", "neither true nor false"),
        ] {
            assert!(mount(bad).unwrap_err().to_string().contains(why), "{bad}");
        }
    }
}
