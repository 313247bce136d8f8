//! Devices by name: files of vendors say what a container needs to use one (`vendor.com/class=name`).
//!
//! ```text
//! yaml   the files' text
//! file   what is in them, checked
//! edit   what it makes of a container's specification
//! ```
//!
//! Folders are read when a container asks for a device; a file in a later folder wins over the earlier ones.
//!
//! Source: container-device-interface SPEC.md.

mod edit;
mod file;
mod yaml;

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Error, Result};
use file::{Device, File};

/// Where vendors put their files, and where those live that are made at boot.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Containers may name devices in annotations as well.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The names in annotations, each value with one or several.
///
/// # Errors
/// One is no full name.
pub fn annotated<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Vec<String>> {
    let mut values: Vec<_> = annotations.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    values.sort();
    let names = values.into_iter().flat_map(|(_, value)| value.split(','));
    names.map(|name| split(name).map(|_| name.to_owned())).collect()
}

/// Gives a container devices: the edits of each file once, those of each device after them.
///
/// # Errors
/// A device is not described, or in two files that count the same; a description cannot be followed.
pub fn inject(spec: &mut Value, names: &[String], folders: &[PathBuf]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let (files, bad) = file::read(folders);
    let (mut named, mut begun) = (HashSet::new(), HashSet::new());
    for name in names.iter().filter(|name| named.insert(name.as_str())) {
        let found = find(&files, name)?.ok_or_else(|| {
            let why: String = bad.iter().map(|error| format!("; {error}")).collect();
            Error::NotFound(format!("CDI device injection failed: unresolvable CDI devices {name}{why}"))
        })?;
        let (file, device) = found;
        if begun.insert(&file.path) {
            edit::apply(spec, &file.edits).map_err(|error| wrong(name, &error))?;
        }
        edit::apply(spec, &device.edits).map_err(|error| wrong(name, &error))?;
    }
    Ok(())
}

fn wrong(name: &str, error: &Error) -> Error {
    Error::InvalidArgument(format!("CDI device {name}: {error}"))
}

/// In the last folder that has it.
fn find<'f>(files: &'f [File], name: &str) -> Result<Option<(&'f File, &'f Device)>> {
    let (kind, device) = split(name)?;
    let all = files.iter().filter(|file| file.kind == kind);
    let mut found: Vec<_> =
        all.filter_map(|file| Some((file, file.devices.iter().find(|one| one.name == device)?))).collect();
    let Some(last) = found.last().map(|(file, _)| file.folder) else { return Ok(None) };
    found.retain(|(file, _)| file.folder == last);
    match found.as_slice() {
        [one] => Ok(Some(*one)),
        several => {
            let files: Vec<_> = several.iter().map(|(file, _)| file.path.display().to_string()).collect();
            Err(Error::FailedPrecondition(format!(
                "CDI device {name} is described more than once: {}",
                files.join(", ")
            )))
        }
    }
}

/// `vendor.com/class=name` in its kind and its name.
fn split(full: &str) -> Result<(&str, &str)> {
    let word = |text: &str, more: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
    };
    let parts = full.split_once('=').and_then(|(kind, name)| Some((kind, kind.split_once('/')?, name)));
    match parts {
        Some((kind, (vendor, class), name)) if word(vendor, "-_.") && word(class, "-_.") && word(name, "-_.:") => {
            Ok((kind, name))
        }
        _ => Err(Error::InvalidArgument(format!("{full:?} is no name of a CDI device: it must be VENDOR/CLASS=NAME"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    fn spec() -> Value {
        json!({"process": {"env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}, "mounts": [], "linux": {"resources": {}}})
    }

    const FILE: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
devices:
  - name: "0"
    containerEdits:
      env:
        - FIRST=0
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 0640}
      mounts:
        - hostPath: /usr/lib
          containerPath: /lib/gpu
          options: [ro, rbind]
      hooks:
        - {hookName: createContainer, path: /bin/true, args: ["true", x]}
      additionalGids: [44]
  - name: bare
    containerEdits: {env: [BARE=1]}
"#;

    #[test]
    fn a_device_brings_what_its_vendor_says() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gpu.yaml", FILE);
        let folders = [dir.path().to_owned()];
        let mut spec = spec();
        inject(&mut spec, &["vendor.com/gpu=0".into(), "vendor.com/gpu=bare".into()], &folders).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "ALL=1", "FIRST=0", "BARE=1"]));
        assert_eq!(
            spec["linux"]["devices"],
            json!([{"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640}])
        );
        let rule = json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}]);
        assert_eq!(spec["linux"]["resources"]["devices"], rule);
        assert_eq!(
            spec["mounts"],
            json!([{"destination": "/lib/gpu", "type": "", "source": "/usr/lib", "options": ["ro", "rbind"]}])
        );
        assert_eq!(spec["hooks"]["createContainer"], json!([{"path": "/bin/true", "args": ["true", "x"]}]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
    }

    #[test]
    fn a_later_folder_wins_and_two_files_beside_one_another_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("etc"), dir.path().join("run")];
        let of = |word: &str| {
            json!({"cdiVersion": "0.3.0", "kind": "v/c", "devices": [{"name": "d", "containerEdits": {"env": [format!("FROM={word}")]}}]})
                .to_string()
        };
        write(&folders[0], "a.json", &of("etc"));
        write(&folders[1], "a.json", &of("run"));
        let mut one = spec();
        inject(&mut one, &["v/c=d".into()], &folders).unwrap();
        assert_eq!(one["process"]["env"][1], "FROM=run");
        write(&folders[1], "b.json", &of("again"));
        let error = inject(&mut spec(), &["v/c=d".into()], &folders).unwrap_err().to_string();
        assert!(error.contains("more than once"), "{error}");
    }

    #[test]
    fn what_nobody_describes_is_named_with_the_files_that_could_not_be_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "bad.yaml", "cdiVersion: 0.6.0\nkind: v/c\ndevices: []\nnonsense: 1\n");
        let error = inject(&mut spec(), &["v/c=d".into()], &[dir.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("unresolvable CDI devices v/c=d") && error.contains("nonsense"), "{error}");
        for bad in ["d", "v/c", "c=d", "v/c=", "-v/c=d", "v/c=d e"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn annotations_name_devices_too() {
        let of = |pairs: &[(&str, &str)]| {
            let map: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            annotated(&map)
        };
        let names = of(&[("cdi.k8s.io/b", "v/c=2"), ("cdi.k8s.io/a", "v/c=0,v/c=1"), ("other", "x")]);
        assert_eq!(names.unwrap(), ["v/c=0", "v/c=1", "v/c=2"]);
        assert!(of(&[("cdi.k8s.io/a", "none")]).is_err());
    }
}
