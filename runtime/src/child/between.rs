//! New namespaces in a user namespace that is joined. They have to be made by a process that is in it already, so that they
//! belong to it; the runtime cannot be that process, since it could not come back. So one goes in between: it joins, makes
//! the container's first process as its sibling, hands the handle to it out, and ends.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{prepare, report, settle, starting};
use crate::error::{Doing as _, Failed};
use crate::plan::{Gate, Plan};
use crate::sys::{self, Cloned};

/// Gives the first process; or the one in between, if that got stuck and has said so on `reports`.
///
/// # Errors
/// The kernel refused the clone.
pub fn clone(
    plan: &Plan,
    gate: &Gate,
    cgroup: Option<BorrowedFd<'_>>,
    reports: BorrowedFd<'_>,
) -> Result<Cloned, Failed> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).doing(starting)?;
    match sys::clone3(0, cgroup).doing(starting)? {
        Cloned::Child => {
            drop(ours);
            go_between(plan, gate, reports, theirs.as_fd())
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let Some(init) = take_handle(ours.as_fd()).doing(starting)? else {
                return Ok(Cloned::Parent { pid, pidfd });
            };
            waitpid(Some(pid), WaitOptions::empty()).doing(starting)?;
            Ok(Cloned::Parent { pid: pid_of(&init)?, pidfd: init })
        }
    }
}

/// Between clone and exec: no allocation.
fn go_between(plan: &Plan, gate: &Gate, reports: BorrowedFd<'_>, handle: BorrowedFd<'_>) -> ! {
    let made =
        prepare(plan, reports).and_then(|()| report::at(report::Step::Clone, sys::clone_sibling(plan.namespaces.new)));
    match made {
        Ok(Cloned::Child) => {
            let Err(stuck) = settle(plan, gate, reports);
            report::stuck(reports, stuck);
        }
        Ok(Cloned::Parent { pidfd, .. }) => {
            if let Err(errno) = give_handle(handle, pidfd.as_fd()) {
                report::stuck(reports, report::Stuck { step: report::Step::Clone, index: 0, errno });
            }
        }
        Err(stuck) => report::stuck(reports, stuck),
    }
    sys::exit(1)
}

/// Sends a descriptor.
pub fn give_handle(to: BorrowedFd<'_>, handle: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let handles = [handle];
    control.push(SendAncillaryMessage::ScmRights(&handles));
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// The descriptor that was sent; none if the other side has ended.
pub fn take_handle(from: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let handles = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(handles.last())
}

/// The number of a process in our own PID namespace, whichever its maker was in.
///
/// Source: proc_pid_fdinfo(5), "Pid".
fn pid_of(handle: &OwnedFd) -> Result<Pid, Failed> {
    let path = format!("/proc/self/fdinfo/{}", handle.as_raw_fd());
    let text = std::fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)).ok_or(Errno::SRCH).doing(starting)
}
