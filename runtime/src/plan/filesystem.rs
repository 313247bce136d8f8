//! The container's view of files: root, mounts, devices, masks.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::CWD;

use super::cgroup_mount::CgroupView;
use super::mounts::is_bind;
use super::{Filesystem, devices, mounts};
use crate::bundle::{Bundle, Error, cleaned};
use crate::error::{Doing as _, Failed};
use crate::mount::options::{Depth, PRIVATE, SLAVE};
use crate::mount::root::Target;
use crate::mount::tree;

/// Plans the root and all that lies in it. Binds are cloned here, so that their sources are looked up once, by us.
///
/// # Errors
/// A source does not exist or may not be cloned.
pub fn filesystem(bundle: &Bundle, cgroups: &CgroupView<'_>, no_pivot: bool) -> Result<Filesystem, Error> {
    let spec = &bundle.spec;
    let linux = bundle.linux();
    let place = CString::new(bundle.rootfs.as_os_str().as_bytes()).expect("a canonical path has no zero byte");
    let root = tree::clone(CWD, &place, Depth::WithAllBelow)
        .doing(|| format!("cloning the root file system {}", bundle.rootfs.display()))?;
    // Nothing of the container's may come out to the host by way of the mount that its root was cloned from.
    tree::propagate(root.as_fd(), SLAVE, Depth::WithAllBelow)
        .doing(|| "making the root a slave of its source".into())?;
    let root_propagation = super::propagation(&linux.rootfs_propagation).flatten();
    let mut planned = Vec::new();
    for (index, mount) in spec.mounts.iter().enumerate() {
        mounts::add(&mut planned, bundle, index, mount, cgroups)?;
    }
    let own_devices = !spec.mounts.iter().any(|mount| cleaned(&mount.destination) == "/dev" && is_bind(mount));
    let bound = bundle.in_user_namespace();
    Ok(Filesystem {
        root,
        place,
        readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        host_propagation: match root_propagation {
            Some((PRIVATE, _)) => (PRIVATE, Depth::WithAllBelow),
            _ => (SLAVE, Depth::WithAllBelow),
        },
        root_propagation: root_propagation.filter(|(kind, _)| *kind != SLAVE),
        before_network: planned.iter().position(|mount| mount.what.shows_network()).unwrap_or(planned.len()),
        mounts: planned,
        nodes: if own_devices { devices::nodes(linux, bound)? } else { Vec::new() },
        links: if own_devices { devices::links()? } else { Vec::new() },
        masked: targets("linux.maskedPaths", &linux.masked_paths)?,
        read_only: targets("linux.readonlyPaths", &linux.readonly_paths)?,
        no_pivot: no_pivot.then(|| bare_mounts(&bundle.rootfs)).transpose()?,
    })
}

pub(super) fn target(field: &str, path: &str) -> Result<Target, Failed> {
    Target::new(path).doing(|| format!("{field}: {path:?}"))
}

/// Where proc and sysfs are mounted outside the container's root, the last first. Source: proc_pid_mountinfo(5).
fn bare_mounts(rootfs: &Path) -> Result<Vec<CString>, Failed> {
    let text = std::fs::read("/proc/self/mountinfo").doing(|| "reading /proc/self/mountinfo".into())?;
    let text = String::from_utf8_lossy(&text);
    let places = text.lines().rev().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        matches!(kind.split(' ').next()?, "proc" | "sysfs")
            .then(|| unescaped(mount.split(' ').nth(4).unwrap_or_default()))
    });
    places
        .filter(|place| !Path::new(place).starts_with(rootfs))
        .map(|place| super::c_string("/proc/self/mountinfo", &place))
        .collect()
}

/// Spaces and other bytes that would end a field are three octal digits behind a backslash.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

/// Paths to protect, each once.
fn targets(field: &str, paths: &[String]) -> Result<Vec<Target>, Failed> {
    let mut seen = std::collections::BTreeSet::new();
    paths.iter().filter(|path| seen.insert(cleaned(path))).map(|path| target(field, path)).collect()
}
