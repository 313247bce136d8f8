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
    with_child(
        libc::CLONE_NEWUSER as u64,
        || (),
        |pid| {
            write_mappings(pid, uids, gids)?;
            let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
            openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("opening {path}"))
        },
    )
}

/// The mappings of a namespace of user and group ids, by the first id in the container. A child goes in to look.
///
/// # Errors
/// It may not be entered.
pub fn mappings_of(namespace: &OwnedFd) -> Result<(Vec<IdMapping>, Vec<IdMapping>), Failed> {
    let enter = || {
        let _ = sys::setns(namespace.as_fd(), libc::CLONE_NEWUSER as u64); // one that was refused stays in ours
    };
    with_child(0, enter, |pid| {
        let read = |file: &str| -> Result<Vec<IdMapping>, Failed> {
            let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
            let text = std::fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
            let mut mappings: Vec<_> = text.lines().filter_map(mapping).collect();
            mappings.sort_by_key(|mapping| mapping.container_id);
            Ok(mappings)
        };
        Ok((read("uid_map")?, read("gid_map")?))
    })
}

fn mapping(line: &str) -> Option<IdMapping> {
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    let (container_id, host_id, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(IdMapping { container_id, host_id, size })
}

/// Calls `look` while a child lives that was cloned with `flags` and has done `first`, which must not allocate.
fn with_child<T>(flags: u64, first: impl FnOnce(), look: impl FnOnce(Pid) -> Result<T, Failed>) -> Result<T, Failed> {
    let helping = || "looking into a user namespace".into();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).doing(helping)?;
    match sys::clone3(flags, None).doing(helping)? {
        Cloned::Child => {
            drop(ours);
            first();
            let _ = report::say_and_wait(theirs.as_fd(), report::Step::Namespace); // until the parent lets go of its end
            sys::exit(0)
        }
        Cloned::Parent { pid, pidfd: _ } => {
            drop(theirs);
            let answer = report::receive(ours.as_fd()).doing(helping).and_then(|_| look(pid));
            drop(ours);
            waitpid(Some(pid), WaitOptions::empty()).doing(helping)?;
            answer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_the_mappings_it_was_made_with() {
        let one = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let uids = vec![one(0, 5000, 10), one(10, 100_000, 65536)];
        let gids = vec![one(0, 7000, 1)];
        let namespace = with_mappings(&uids, &gids).unwrap();
        assert_eq!(mappings_of(&namespace).unwrap(), (uids, gids));
    }

    #[test]
    fn mappings_that_the_kernel_refuses_are_told() {
        let twice = IdMapping { container_id: 0, host_id: 1, size: 10 };
        let said = with_mappings(&[twice, twice], &[twice]).unwrap_err().to_string();
        assert_eq!(said, "writing uidMappings: invalid argument");
    }
}
