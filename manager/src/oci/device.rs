//! Devices of the host for a container.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use crate::error::{Doing as _, Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where the container has it.
    path: String,
    /// `c` or `b`.
    kind: &'static str,
    major: u32,
    minor: u32,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
    /// Of `rwm`.
    access: String,
}

impl Device {
    /// Reads `HOST[:CONTAINER][:rwm]`. A folder stands for all devices in it.
    ///
    /// # Errors
    /// `InvalidArgument`: it is not of that form, or there is no such device.
    pub fn parse(text: &str) -> Result<Vec<Device>> {
        let wrong = |why: &str| Error::InvalidArgument(format!("--device {text}: {why}"));
        let is_access = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
        let parts: Vec<&str> = text.split(':').collect();
        let (host, container, access) = match parts.as_slice() {
            [host] => (*host, *host, "rwm"),
            [host, access] if is_access(access) => (*host, *host, *access),
            [host, container] => (*host, *container, "rwm"),
            [host, container, access] if is_access(access) => (*host, *container, *access),
            _ => return Err(wrong("is not HOST[:CONTAINER][:rwm]")),
        };
        if !host.starts_with('/') || !container.starts_with('/') {
            return Err(wrong("is not an absolute path"));
        }
        let found = fs::metadata(host).doing(|| format!("--device {text}"))?;
        if found.is_dir() {
            let mut devices = Vec::new();
            walk(Path::new(host), &mut |path| {
                let below = path.strip_prefix(host).unwrap_or(path);
                devices.extend(Device::at(path, &Path::new(container).join(below).to_string_lossy(), access));
            })?;
            return if devices.is_empty() { Err(wrong("no device is in it")) } else { Ok(devices) };
        }
        Ok(vec![Device::at(Path::new(host), container, access).ok_or_else(|| wrong("is not a device"))?])
    }

    /// The device that `host` is, if it is one.
    fn at(host: &Path, container: &str, access: &str) -> Option<Device> {
        let found = fs::metadata(host).ok()?;
        let kind = match found.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            _ => return None,
        };
        Some(Device {
            path: container.to_owned(),
            kind,
            major: major(found.rdev()),
            minor: minor(found.rdev()),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            access: access.to_owned(),
        })
    }

    pub fn spec(&self) -> Value {
        json!({"path": self.path, "type": self.kind, "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid})
    }

    pub fn rule(&self) -> Value {
        json!({"allow": true, "type": self.kind, "major": self.major, "minor": self.minor, "access": self.access})
    }
}

/// What `--privileged` gives: all in /dev but what every container has of its own.
///
/// # Errors
/// /dev cannot be read.
pub fn all_of_the_host() -> Result<Vec<Device>> {
    const OWN: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
    let mut devices = Vec::new();
    walk(Path::new("/dev"), &mut |path| {
        let own = OWN.iter().any(|name| path == Path::new("/dev").join(name));
        let link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        if !own && !link {
            devices.extend(Device::at(path, &path.to_string_lossy(), "rwm"));
        }
    })?;
    Ok(devices)
}

/// Every file below a folder, but for file systems that each container has of its own.
fn walk(folder: &Path, found: &mut dyn FnMut(&Path)) -> Result<()> {
    const OTHERS: &[&str] = &["pts", "shm", "mqueue", "fd", ".lxc", ".lxd-mounts", ".udev"];
    let entries = fs::read_dir(folder).doing(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let other = path.file_name().is_some_and(|name| OTHERS.iter().any(|other| name == *other));
        match fs::symlink_metadata(&path) {
            Ok(entry) if entry.is_dir() && !other => walk(&path, found)?,
            Ok(entry) if !entry.is_dir() => found(&path),
            _ => {} // went away, or not ours
        }
    }
    Ok(())
}

/// Reads `--device-cgroup-rule`: `c 1:3 rwm`, with `*` for any number.
///
/// # Errors
/// `InvalidArgument`.
pub fn rule(text: &str) -> Result<Value> {
    let wrong = || Error::InvalidArgument(format!("--device-cgroup-rule {text}: is not TYPE MAJOR:MINOR ACCESS"));
    let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(wrong()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let kind_ok = matches!(kind, "a" | "b" | "c");
    if !kind_ok || access.is_empty() || access.len() > 3 || !access.chars().all(|c| "rwm".contains(c)) {
        return Err(wrong());
    }
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    for (name, number) in [("major", major), ("minor", minor)] {
        if number != "*" {
            rule[name] = number.parse::<u32>().map_err(|_| wrong())?.into();
        }
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_docker_reads_it() {
        let parse = |text: &str| Device::parse(text).map(|mut devices| devices.remove(0));
        let null = parse("/dev/null").unwrap();
        assert_eq!((null.kind, null.major, null.minor, null.access.as_str()), ("c", 1, 3, "rwm"));
        assert_eq!(
            parse("/dev/null:/dev/x:r").unwrap(),
            Device { path: "/dev/x".into(), access: "r".into(), ..null.clone() }
        );
        assert_eq!(parse("/dev/null:rw").unwrap(), Device { access: "rw".into(), ..null });
        for bad in ["/dev/null:x", "null", "/dev/none", "/etc/passwd", "/dev/null:/a:q", "/dev/null:/a:r:w"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(all_of_the_host().unwrap().iter().all(|device| device.path != "/dev/null"));
    }

    #[test]
    fn a_device_rule_is_read_as_docker_reads_it() {
        assert_eq!(rule("c 1:* r").unwrap(), json!({"allow": true, "type": "c", "major": 1, "access": "r"}));
        for bad in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 q", "c a:3 r", "c 1:3 rwmr"] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}
