//! What a child says: where it is, or where it got stuck. Eight bytes, so that nothing has to be put together there.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// A place on the way. The order of the variants is not the order of the walk.
#[repr(u16)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Signals,
    Session,
    Cgroup,
    Mappings,
    Namespace,
    CgroupNamespace,
    Hostname,
    Domainname,
    Loopback,
    HostPropagation,
    Root,
    Mount,
    Device,
    Link,
    Terminal,
    Console,
    Hooks,
    Null,
    Masked,
    ReadOnly,
    PivotRoot,
    RootPropagation,
    ReadonlyRoot,
    Procfs,
    Sysctl,
    Cwd,
    CwdOutside,
    Keyring,
    Personality,
    Seccomp,
    SeccompListener,
    Bounding,
    Groups,
    User,
    Capabilities,
    Ambient,
    NoNewPrivileges,
    Program,
    Gate,
    Descriptors,
    Exec,
    Limits,
    MountPoint,
    CopyUp,
    Affinity,
    Scheduler,
    IoPriority,
    MemoryPolicy,
    Label,
    Clone,
    Network,
}

/// Every step, so that a number can be turned back.
const STEPS: &[Step] = &[
    Step::Signals,
    Step::Session,
    Step::Cgroup,
    Step::Mappings,
    Step::Namespace,
    Step::CgroupNamespace,
    Step::Hostname,
    Step::Domainname,
    Step::Loopback,
    Step::HostPropagation,
    Step::Root,
    Step::Mount,
    Step::Device,
    Step::Link,
    Step::Terminal,
    Step::Console,
    Step::Hooks,
    Step::Null,
    Step::Masked,
    Step::ReadOnly,
    Step::PivotRoot,
    Step::RootPropagation,
    Step::ReadonlyRoot,
    Step::Procfs,
    Step::Sysctl,
    Step::Cwd,
    Step::CwdOutside,
    Step::Keyring,
    Step::Personality,
    Step::Seccomp,
    Step::SeccompListener,
    Step::Bounding,
    Step::Groups,
    Step::User,
    Step::Capabilities,
    Step::Ambient,
    Step::NoNewPrivileges,
    Step::Program,
    Step::Gate,
    Step::Descriptors,
    Step::Exec,
    Step::Limits,
    Step::MountPoint,
    Step::CopyUp,
    Step::Affinity,
    Step::Scheduler,
    Step::IoPriority,
    Step::MemoryPolicy,
    Step::Label,
    Step::Clone,
    Step::Network,
];

/// Where a child got stuck: which step, which of several of its kind, and the kernel's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    pub step: Step,
    pub index: u16,
    pub errno: Errno,
}

/// What a parent hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The child waits at this step until it is told to go on. The number is a descriptor for [`Step::SeccompListener`].
    Waits(Step, u16),
    Stuck(Stuck),
}

/// Notes the step at which a call failed.
pub fn at<T>(step: Step, answer: Result<T, Errno>) -> Result<T, Stuck> {
    nth(step, 0, answer)
}

/// Notes the step at which a call failed, and which of several it was.
pub fn nth<T>(step: Step, index: u16, answer: Result<T, Errno>) -> Result<T, Stuck> {
    answer.map_err(|errno| Stuck { step, index, errno })
}

/// Tells the parent how the walk ended. If nobody listens any more, there is nobody to tell.
pub fn stuck(socket: BorrowedFd<'_>, Stuck { step, index, errno }: Stuck) {
    let _ = write(socket, step, index, errno.raw_os_error());
}

/// Tells the parent that the child waits at `step`, and waits.
pub fn say_and_wait(socket: BorrowedFd<'_>, step: Step) -> Result<(), Errno> {
    say_number_and_wait(socket, step, 0)
}

/// The same, with a descriptor's number that the parent may take.
pub fn say_number_and_wait(socket: BorrowedFd<'_>, step: Step, number: u16) -> Result<(), Errno> {
    write(socket, step, number, 0)?;
    wait(socket)
}

/// Waits for a byte. Plain read(2), which every filter that lets a program run at all lets pass.
pub fn wait(from: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0];
    loop {
        match rustix::io::read(from, &mut byte) {
            Ok(1..) => return Ok(()),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Says something without waiting for an answer.
pub fn write(to: BorrowedFd<'_>, step: Step, index: u16, errno: i32) -> Result<(), Errno> {
    let mut record = [0; 8];
    record[..2].copy_from_slice(&(step as u16).to_ne_bytes());
    record[2..4].copy_from_slice(&index.to_ne_bytes());
    record[4..].copy_from_slice(&errno.to_ne_bytes());
    rustix::io::write(to, &record).map(|_| ()) // as `wait`; if nobody listens any more SIGPIPE ends this process, rightly
}

/// The parent's side: the next record, or none at the end.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    let mut record = [0; 8];
    loop {
        match recv(socket, &mut record, RecvFlags::empty()) {
            Ok((8, _)) => return Ok(Some(decode(record).ok_or(Errno::BADMSG)?)),
            Ok((0, _)) => return Ok(None),
            Ok(_) => return Err(Errno::BADMSG),
            // A child that ends without having read what lets it go on resets the socket. That is told once, before what
            // it has said, which still lies there: unix(7).
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A record as it was written; none if it is not one.
pub fn decode(record: [u8; 8]) -> Option<Report> {
    let [s0, s1, i0, i1, e0, e1, e2, e3] = record;
    let step = *STEPS.get(usize::from(u16::from_ne_bytes([s0, s1])))?;
    let index = u16::from_ne_bytes([i0, i1]);
    Some(match i32::from_ne_bytes([e0, e1, e2, e3]) {
        0 => Report::Waits(step, index),
        errno => Report::Stuck(Stuck { step, index, errno: Errno::from_raw_os_error(errno) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_comes_back_as_itself() {
        for (number, step) in STEPS.iter().enumerate() {
            assert_eq!(*step as usize, number, "{step:?}");
        }
    }
}
