//! User namespaces: their mappings, and one that exists for its mappings alone.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::report;
use crate::error::{Doing as _, Failed};
use crate::spec::IdMapping;
use crate::sys::{self, Cloned};

/// Writes the mappings of a process's new user namespace.
///
/// # Errors
/// An id is mapped twice, or may not be mapped.
///
/// Source: user_namespaces(7), "User and group ID mappings".
pub fn write_mappings(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Failed> {
    for (file, field, mappings) in [("uid_map", "uidMappings", uids), ("gid_map", "gidMappings", gids)] {
        let lines: String = mappings.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
        std::fs::write(format!("/proc/{}/{file}", pid.as_raw_nonzero()), lines).doing(|| format!("writing {field}"))?;
    }
    Ok(())
}

/// A namespace in which nobody is, for a mount whose owners are mapped by it. A child makes it and ends as soon as it is
/// held by a descriptor.
///
/// # Errors
/// As [`write_mappings`].
pub fn with_mappings(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, Failed> {
    let making = || "making a user namespace for an id-mapped mount".into();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).doing(making)?;
    match sys::clone3(libc::CLONE_NEWUSER as u64, None).doing(making)? {
        Cloned::Child => {
            drop(ours);
            let _ = report::wait(theirs.as_fd()); // until the parent lets go of its end, by whatever way
            sys::exit(0)
        }
        Cloned::Parent { pid, pidfd: _ } => {
            let namespace = write_mappings(pid, uids, gids).and_then(|()| {
                let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
                openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("opening {path}"))
            });
            drop((ours, theirs));
            waitpid(Some(pid), WaitOptions::empty()).doing(making)?;
            namespace
        }
    }
}
