//! Small languages of the command line: variables and labels with their files, limits, kernel parameters, security options.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use crate::oci::{Asked, Seccomp};

/// Those of the files first, then those of the command line; `NAME` alone is replaced by our own variable, if there is one.
pub fn environment(files: &[String], given: &[String]) -> Result<Vec<String>> {
    let mut environment = Vec::new();
    for file in files {
        for (number, line) in lines("--env-file", file)? {
            let name = line.split('=').next().unwrap_or_default();
            let good = !name.is_empty() && !name.contains(char::is_whitespace);
            ensure!(good, "--env-file {file}: line {number}: {name:?} is not a variable's name");
            match (line.contains('='), std::env::var(&line)) {
                (true, _) => environment.push(line),
                (false, Ok(value)) => environment.push(format!("{line}={value}")),
                (false, Err(_)) => {}
            }
        }
    }
    for variable in given {
        ensure!(!variable.is_empty() && !variable.starts_with('='), "--env {variable:?}: not NAME=VALUE");
        ensure!(!variable.contains('\0'), "--env {variable:?}: contains a NUL");
        match (variable.contains('='), std::env::var(variable)) {
            (false, Ok(value)) => environment.push(format!("{variable}={value}")),
            _ => environment.push(variable.clone()),
        }
    }
    Ok(environment)
}

/// Labels of the image, of files and of the command line; later ones win.
pub fn labels(files: &[String], given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut all = Vec::new();
    for file in files {
        all.extend(lines("--label-file", file)?.into_iter().map(|(_, line)| line));
    }
    for label in all.iter().chain(given) {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        ensure!(!name.is_empty(), "--label {label}: has no name");
        labels.insert(name.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// `NAME=VALUE` each.
pub fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| -> Result<(String, String)> {
        let (name, value) = text.split_once('=').with_context(|| format!("{flag} {text}: not NAME=VALUE"))?;
        ensure!(!name.is_empty(), "{flag} {text}: not NAME=VALUE");
        Ok((name.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

/// The lines of a file that say something, numbered.
fn lines(flag: &str, file: &str) -> Result<Vec<(usize, String)>> {
    let text = fs::read_to_string(file).map_err(|error| anyhow::anyhow!("{flag} {file}: {}", super::words(&error)))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let says = |(number, line): (usize, &str)| {
        let line = line.trim_start();
        (!line.is_empty() && !line.starts_with('#')).then(|| (number + 1, line.to_owned()))
    };
    Ok(text.lines().enumerate().filter_map(says).collect())
}

/// Reads `NAME=SOFT[:HARD]`, with -1 for no limit.
pub fn ulimit(text: &str) -> Result<(String, u64, u64)> {
    const NAMES: &[&str] = &[
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = || format!("--ulimit {text}: not NAME=SOFT[:HARD]");
    let (name, limits) = text.split_once('=').with_context(wrong)?;
    ensure!(NAMES.contains(&name), "--ulimit {text}: unknown limit {name}");
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse::<u64>().with_context(wrong),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    ensure!(soft <= hard, "--ulimit {text}: the soft limit is above the hard one");
    Ok((format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard))
}

/// Reads `--security-opt`.
pub fn security(options: &[String], asked: &mut Asked) -> Result<()> {
    for option in options {
        let parts = option.split_once('=').or_else(|| option.split_once(':')); // as older versions of docker had it
        let (name, value) = parts.map_or((option.as_str(), ""), |(name, value)| (name, value));
        match (name, value) {
            ("no-new-privileges", "" | "true") => asked.no_new_privileges = true,
            ("no-new-privileges", "false") => asked.no_new_privileges = false,
            ("seccomp", "unconfined") => asked.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin") => asked.seccomp = Seccomp::Builtin,
            ("seccomp", file) if !file.is_empty() => {
                let why = |why: String| anyhow::anyhow!("--security-opt {option}: {why}");
                let text = fs::read(file).map_err(|error| why(super::words(&error)))?;
                let profile = serde_json::from_slice(&text).map_err(|error| why(error.to_string()))?;
                asked.seccomp = Seccomp::Profile(profile);
            }
            ("apparmor", "unconfined") => asked.apparmor = None,
            ("apparmor", profile) if !profile.is_empty() => asked.apparmor = Some(profile.to_owned()),
            ("systempaths", "unconfined") => asked.unmasked = true,
            ("label", "disable") => {} // no label is set anyway
            ("label", _) => bail!("--security-opt {option}: SELinux is not supported"),
            _ => bail!("--security-opt {option}: unknown"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_files_and_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env").display().to_string();
        fs::write(&file, "# a comment\n\n  A=1=2\nPATH\nNOT_SET_HERE\nQUOTED=\"kept\"\n").unwrap();
        let path = std::env::var("PATH").unwrap();
        let given = ["B=x".to_owned(), "EMPTY=".to_owned(), "NOT_SET_HERE".to_owned()];
        assert_eq!(
            environment(std::slice::from_ref(&file), &given).unwrap(),
            ["A=1=2", &format!("PATH={path}"), "QUOTED=\"kept\"", "B=x", "EMPTY=", "NOT_SET_HERE"]
        );
        fs::write(&file, "two words=1\n").unwrap();
        assert!(environment(&[file], &[]).is_err());
        assert!(environment(&["/none".into()], &[]).unwrap_err().to_string().contains("no such file"));
        assert!(environment(&[], &["=x".into()]).is_err());
    }

    #[test]
    fn limits_are_read_as_docker_reads_them() {
        assert_eq!(ulimit("nofile=10:20").unwrap(), ("RLIMIT_NOFILE".into(), 10, 20));
        assert_eq!(ulimit("core=-1").unwrap(), ("RLIMIT_CORE".into(), u64::MAX, u64::MAX));
        for bad in ["nofile", "nofile=", "nofile=20:10", "files=1", "nofile=a", "nofile=1:2:3"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn security_options_are_read_in_both_spellings() {
        let read = |options: &[&str]| {
            let mut asked = Asked::default();
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            security(&options, &mut asked).map(|()| asked)
        };
        assert!(matches!(read(&["seccomp=unconfined"]).unwrap().seccomp, Seccomp::Unconfined));
        assert!(matches!(read(&["seccomp:unconfined"]).unwrap().seccomp, Seccomp::Unconfined));
        assert!(read(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(!read(&["no-new-privileges:false"]).unwrap().no_new_privileges);
        assert_eq!(read(&["apparmor=mine"]).unwrap().apparmor.as_deref(), Some("mine"));
        for bad in ["seccomp=/none", "seccomp=", "label=type:x", "selinux", ""] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }
}
