//! Which namespaces are made and which are joined.

use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::Namespaces;
use crate::bundle::{Bundle, Error, refused};
use crate::child::user_namespace;
use crate::error::Doing as _;
use crate::{rootless, sys};

/// Kind, `CLONE_NEW…`. In the order in which they are joined: the user namespace first, since it decides what may be done in
/// the others; the mount namespace late, since the paths of the others are looked up before.
const KINDS: &[(&str, i32)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("network", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("mount", libc::CLONE_NEWNS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
];

/// The `CLONE_NEW…` of a kind as the specification names it.
pub fn namespace_flag(kind: &str) -> Option<u64> {
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, flag)| *flag as u64)
}

/// The kinds, as the specification names them.
pub fn namespace_kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Opens the namespaces that are joined and lists those that are made.
///
/// # Errors
/// A path is not a namespace, or not one of the kind it is given for.
pub fn namespaces(bundle: &Bundle) -> Result<Namespaces, Error> {
    let mut namespaces = Namespaces::default();
    for (kind, flag) in KINDS {
        let flag = *flag as u64;
        let Some(asked) = bundle.namespace(kind) else { continue };
        match (*kind, asked.path.as_str()) {
            ("cgroup", "") => namespaces.new_cgroup = true,
            ("time", "") => namespaces.time_offsets = Some(time_offsets(bundle)),
            ("user", "") if rootless::inside_own() => {} // entered already
            ("user", "") => {
                namespaces.new |= flag;
                namespaces.mapped_later = true;
            }
            (_, "") => namespaces.new |= flag,
            ("pid", path) => namespaces.pid = Some(open(path, flag, kind)?),
            (_, path) => {
                let namespace = open(path, flag, kind)?;
                if *kind == "user" {
                    same_mappings(&namespace, bundle)?;
                }
                namespaces.joined.push((namespace, flag));
            }
        }
    }
    Ok(namespaces)
}

/// Mappings may be given for a user namespace that is joined, but only those that it has.
fn same_mappings(namespace: &OwnedFd, bundle: &Bundle) -> Result<(), Error> {
    let linux = bundle.linux();
    if linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty() {
        return Ok(());
    }
    let (uids, gids) = user_namespace::mappings_of(namespace)?;
    for (field, asked, there) in
        [("linux.uidMappings", &linux.uid_mappings, uids), ("linux.gidMappings", &linux.gid_mappings, gids)]
    {
        let mut asked = asked.clone();
        asked.sort_by_key(|mapping| mapping.container_id);
        if asked != there {
            return refused(field, "a user namespace that is joined has other mappings");
        }
    }
    Ok(())
}

/// A namespace to join, which is of the kind that it is given for.
pub fn open(path: &str, flag: u64, kind: &str) -> Result<OwnedFd, Error> {
    let namespace = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening the {kind} namespace {path}"))?;
    if sys::namespace_type(namespace.as_fd()).ok() != Some(flag) {
        return refused("linux.namespaces", format!("{path} is not a {kind} namespace"));
    }
    Ok(namespace)
}

/// One line for each clock, as /proc/PID/timens_offsets wants them. Source: time_namespaces(7).
fn time_offsets(bundle: &Bundle) -> String {
    bundle.linux().time_offsets.iter().fold(String::new(), |mut lines, (clock, offset)| {
        let _ = writeln!(lines, "{clock} {} {}", offset.secs, offset.nanosecs); // a String takes everything
        lines
    })
}
