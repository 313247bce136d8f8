//! Without root: the runtime becomes root of the container's user namespace before it makes anything.
//!
//! Whoever has no privileges can neither clone mounts nor make namespaces, except in a user namespace of their own. So this
//! process makes the container's and enters it, with a mount namespace; from there on all goes as it does for root, and the
//! container's first process finds itself in the right user namespace already.
//!
//! Inside a user namespace that somebody else made (podman's, rootlesskit's) we are root of it and there is nothing to
//! enter; some things are still not allowed there, and [`inside`] says so.
//!
//! Source: user_namespaces(7); newuidmap(1); runc's docs/rootless.md.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::OnceLock;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{Pid, WaitOptions, geteuid, getpid, waitpid};
use rustix::thread::UnshareFlags;

use crate::child::user_namespace::write_mappings;
use crate::error::{Doing as _, Failed};
use crate::spec::{IdMapping, Linux};
use crate::sys::{self, Cloned};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "linux.namespaces: without root it needs a user namespace (`tare spec --rootless` writes such a config.json)"
    )]
    NoNamespace,
    #[error("mapping users: {0}")]
    Mapping(String),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Whether we have no root at all, not even that of a user namespace.
pub fn unprivileged() -> bool {
    !geteuid().is_root()
}

/// Whether this process has entered the container's user namespace.
pub fn inside_own() -> bool {
    ENTERED.get().is_some()
}

/// `CLONE_NEW…` of what this process has entered, and a child of it is in.
pub fn entered() -> u64 {
    if inside_own() { libc::CLONE_NEWUSER as u64 } else { 0 }
}

static ENTERED: OnceLock<()> = OnceLock::new();

/// Whether this process is in a user namespace that is not the first one.
pub fn inside() -> bool {
    if inside_own() {
        return true;
    }
    static INSIDE: OnceLock<bool> = OnceLock::new();
    *INSIDE
        .get_or_init(|| !is_first() && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_all(&map)))
}

/// Whether this is surely the first one, whose number is fixed: `USER_NS_INIT_INO`, linux/nsfs.h.
fn is_first() -> bool {
    const FIRST: u64 = 0xefff_fffd;
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|there| there.st_ino == FIRST)
}

/// The first user namespace maps every id to itself.
fn maps_all(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a user's own folder for run-time files is meant and not the system's.
pub fn honors_runtime_dir() -> bool {
    unprivileged() || (inside() && std::env::var("USER").as_deref() != Ok("root"))
}

/// Makes the container's user namespace and a mount namespace, and becomes root in them.
pub fn enter(linux: &Linux) -> Result<(), Error> {
    if !linux.namespaces.iter().any(|namespace| namespace.kind == "user" && namespace.path.is_empty()) {
        return Err(Error::NoNamespace);
    }
    let entering = || "entering a user namespace".into();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).doing(entering)?;
    let us = getpid();
    // The mappings are written from outside, where the ids on their right side mean something.
    match sys::clone3(0, None).doing(entering)? {
        Cloned::Child => {
            drop(ours);
            let mut go = [0];
            let said = match recv(&theirs, &mut go, RecvFlags::empty()) {
                Ok((1, _)) => map(us, linux).err().unwrap_or_default(),
                _ => "the runtime is gone".into(),
            };
            let _ = send(&theirs, said.as_bytes(), SendFlags::NOSIGNAL);
            sys::exit(0)
        }
        Cloned::Parent { pid, .. } => {
            drop(theirs);
            #[allow(deprecated)] // its successor is unsafe because of CLONE_FILES alone, which is not among our flags
            let unshared = rustix::thread::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS);
            unshared.doing(|| "making a user namespace".into())?;
            send(&ours, b".", SendFlags::NOSIGNAL).doing(entering)?;
            let mut said = vec![0; 4096];
            let (length, _) = recv(&ours, &mut said, RecvFlags::empty()).doing(entering)?;
            waitpid(Some(pid), WaitOptions::empty()).doing(entering)?;
            if length > 0 {
                return Err(Error::Mapping(String::from_utf8_lossy(&said[..length]).into_owned()));
            }
            ENTERED.get_or_init(|| ());
            Ok(crate::child::enter::mapped_root().doing(|| "becoming root of the user namespace".into())?)
        }
    }
}

/// Becomes root of the user namespace of a container of ours.
pub fn join(init: BorrowedFd<'_>) -> Result<(), Error> {
    sys::setns(init, libc::CLONE_NEWUSER as u64).doing(|| "joining the container's user namespace".into())?;
    ENTERED.get_or_init(|| ());
    Ok(crate::child::enter::mapped_root().doing(|| "becoming root of the user namespace".into())?)
}

/// One's own id alone may be mapped by oneself; for others there are helpers, which look into /etc/subuid and /etc/subgid.
fn map(pid: Pid, linux: &Linux) -> Result<(), String> {
    let (uids, gids) = (&linux.uid_mappings, &linux.gid_mappings);
    let alone = |mappings: &[IdMapping], own: u32| matches!(mappings, [only] if only.size == 1 && only.host_id == own);
    if alone(uids, geteuid().as_raw()) && alone(gids, rustix::process::getegid().as_raw()) {
        let deny = format!("/proc/{}/setgroups", pid.as_raw_nonzero());
        std::fs::write(&deny, "deny").doing(|| format!("writing {deny}")).map_err(|error| error.to_string())?;
        return write_mappings(pid, uids, gids).map_err(|error| error.to_string());
    }
    for (helper, mappings) in [("newuidmap", uids), ("newgidmap", gids)] {
        let mut command = Command::new(helper);
        command.arg(pid.as_raw_nonzero().to_string());
        for mapping in mappings {
            command.args([mapping.container_id, mapping.host_id, mapping.size].map(|number| number.to_string()));
        }
        let output = command.output().doing(|| format!("running {helper}")).map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{helper}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_namespace_is_known_by_its_mapping() {
        assert!(maps_all("         0          0 4294967295\n"));
        for map in ["", "0 1000 1", "0 0 65536", "0 0 4294967295\n4294967295 1 1"] {
            assert!(!maps_all(map), "{map:?}");
        }
    }
}
