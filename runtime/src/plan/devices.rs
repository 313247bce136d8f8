//! Device nodes, and the links beside them.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, fstat, makedev};

use super::filesystem::target;
use super::mounts::clone_bind;
use super::{Node, c_string};
use crate::bundle::{Error, cleaned, refused};
use crate::error::{Doing as _, Failed};
use crate::mount::options::Depth;
use crate::mount::root::Target;
use crate::spec;

/// Path and numbers of each device that every container has. Source: runtime-spec config-linux.md, "Default Devices".
const DEFAULT_DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default devices and those of the specification, which replace defaults at the same path.
pub fn nodes(linux: &spec::Linux, bound: bool) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for (path, major, minor) in DEFAULT_DEVICES {
        if !linux.devices.iter().any(|device| cleaned(&device.path) == *path) {
            nodes.push(node(path, FileType::CharacterDevice, makedev(*major, *minor), 0o666, (0, 0), bound)?);
        }
    }
    for device in &linux.devices {
        let kind = match device.kind.as_str() {
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        let number = |name: &str, number: i64| {
            u32::try_from(number).or_else(|_| {
                refused(format!("linux.devices {}: {name}", device.path), format!("{number} is not a device number"))
            })
        };
        let numbers = if kind == FileType::Fifo {
            0
        } else {
            makedev(number("major", device.major)?, number("minor", device.minor)?)
        };
        let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        nodes.push(node(
            &device.path,
            kind,
            numbers,
            device.file_mode.unwrap_or(0o666) & 0o7777,
            owner,
            bound && kind != FileType::Fifo,
        )?);
    }
    Ok(nodes)
}

fn node(
    path: &str,
    file_type: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
    bound: bool,
) -> Result<Node, Error> {
    let bound = if bound { Some(host_device(path, file_type, device)?) } else { None };
    Ok(Node { target: target("linux.devices", path)?, file_type, mode, device, uid: owner.0, gid: owner.1, bound })
}

/// In a user namespace mknod is not allowed: the host's node is bound, if it is the same device.
fn host_device(path: &str, file_type: FileType, device: u64) -> Result<OwnedFd, Error> {
    let tree = clone_bind(Path::new(OsStr::new(path)), Depth::Alone).doing(|| format!("binding the device {path}"))?;
    let there = fstat(&tree).doing(|| format!("looking at {path}"))?;
    if FileType::from_raw_mode(there.st_mode) != file_type || there.st_rdev != device {
        return refused(
            format!("linux.devices {path}"),
            "the host has another device there, and a user namespace may not make one",
        );
    }
    Ok(tree)
}

/// Source: runtime-spec config-linux.md, "Dev symbolic links"; `ptmx` as the default file systems need it.
pub fn links() -> Result<Vec<(Target, CString)>, Failed> {
    let mut links = vec![
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ];
    if Path::new("/proc/kcore").exists() {
        links.push(("/dev/core", "/proc/kcore"));
    }
    links.iter().map(|(path, to)| Ok((target("/dev", path)?, c_string("/dev", to)?))).collect()
}
