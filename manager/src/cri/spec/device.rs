//! Devices: the nodes that are made, and what may be done with them.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

use super::Given;
use crate::error::{Doing as _, Error, Result};

pub struct Devices {
    pub nodes: Vec<Value>,
    pub rules: Value,
}

pub fn devices(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Result<Devices> {
    let mut nodes = Vec::new();
    if security.privileged {
        if given.mappings().is_none() {
            collect(Path::new("/dev"), &mut nodes)?;
        }
        return Ok(Devices { nodes, rules: json!([{"allow": true, "access": "rwm"}]) });
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(usual());
    for device in &given.config.devices {
        let field = |why: &str| Error::InvalidArgument(format!("devices: {}: {why}", device.host_path));
        if !device.permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(field("permissions are made of r, w and m"));
        }
        let host = std::fs::canonicalize(&device.host_path).doing(|| format!("devices: {}", device.host_path))?;
        let mut found = Vec::new();
        if host.is_dir() {
            collect(&host, &mut found)?;
        } else {
            found.push(node(&host, Path::new(&device.container_path))?.ok_or_else(|| field("is no device"))?);
        }
        for one in &mut found {
            // Those of a folder keep their place below it.
            if let Some(below) = one["path"].as_str().and_then(|path| Path::new(path).strip_prefix(&host).ok()) {
                one["path"] = json!(Path::new(&device.container_path).join(below));
            }
            rules.push(json!({"allow": true, "type": one["type"], "major": one["major"], "minor": one["minor"],
                              "access": device.permissions}));
        }
        nodes.extend(found);
    }
    Ok(Devices { nodes, rules: Value::Array(rules) })
}

/// What every container may use: null, zero, full, random, urandom, tty, console, ptmx, and terminals.
fn usual() -> Vec<Value> {
    let device = |major: u32, minor: Option<u32>| match minor {
        Some(minor) => json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
    };
    let single = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    let mut rules =
        vec![json!({"allow": true, "type": "c", "access": "m"}), json!({"allow": true, "type": "b", "access": "m"})];
    rules.extend(single.map(|(major, minor)| device(major, Some(minor))));
    rules.push(device(136, None));
    rules
}

/// All devices below a folder, but for file systems of their own that containers get anyway.
fn collect(folder: &Path, nodes: &mut Vec<Value>) -> Result<()> {
    const SKIPPED: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];
    for entry in std::fs::read_dir(folder).doing(|| format!("reading {}", folder.display()))? {
        let entry = entry.doing(|| format!("reading {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&path, nodes)?,
            Ok(kind) if kind.is_char_device() || kind.is_block_device() => nodes.extend(node(&path, &path)?),
            _ => {}
        }
    }
    Ok(())
}

/// A device under a name; none if it is something else, or went away meanwhile.
fn node(host: &Path, target: &Path) -> Result<Option<Value>> {
    let metadata = match std::fs::symlink_metadata(host) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.doing(|| format!("looking at {}", host.display()))?,
    };
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Ok(None),
    };
    let number = metadata.rdev();
    Ok(Some(json!({
        "path": target, "type": kind, "major": rustix::fs::major(number), "minor": rustix::fs::minor(number),
        "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid(),
    })))
}
