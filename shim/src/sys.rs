//! The few system calls without a safe door.

#![allow(unsafe_code)] // doors to the kernel

use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

/// Blocks `SIGCHLD`, `SIGTERM` and `SIGINT`, and gives a descriptor that reads as the next of them.
///
/// Source: sigprocmask(2), signalfd(2).
pub fn signals() -> Result<OwnedFd, Errno> {
    let set: u64 = 1 << (libc::SIGCHLD - 1) | 1 << (libc::SIGTERM - 1) | 1 << (libc::SIGINT - 1);
    // SAFETY: the set is eight bytes, as passed; no old set is asked for.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, 0usize, 8usize) })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is eight bytes, as passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, 8usize, flags) })?;
    // SAFETY: signalfd4 succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A child that has ended, without waiting for it.
///
/// Source: waitid(2), `WNOWAIT`.
pub fn ended_child() -> Option<Pid> {
    let mut information = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a siginfo_t that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_waitid, libc::P_ALL, 0, information.as_mut_ptr(), flags, 0usize) }).ok()?;
    // SAFETY: zeroed is a valid siginfo_t, and the kernel may have filled it.
    let information = unsafe { information.assume_init() };
    // SAFETY: waitid fills the child's part of the union, or leaves it zero.
    Pid::from_raw(unsafe { information.si_pid() })
}

/// Sends any signal, real-time ones too, to the process that a descriptor refers to.
///
/// Source: pidfd_send_signal(2).
pub fn send_signal(process: &OwnedFd, signal: i32) -> Result<(), Errno> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(process);
    // SAFETY: it takes numbers; without information the kernel fills it as kill(2) does.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0usize, 0) }).map(|_| ())
}

/// Gives freed memory back: what is needed for one request only is not to stay for months.
///
/// Source: malloc_trim(3).
pub fn trim_memory() {
    // SAFETY: it takes a number and touches only the allocator's own memory.
    unsafe { libc::malloc_trim(0) };
}

fn check(answer: libc::c_long) -> Result<libc::c_long, Errno> {
    if answer >= 0 {
        return Ok(answer);
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}
