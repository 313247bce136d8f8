//! The system calls that rustix has no safe door for: one thin function each, with its manual page, and nothing else.
//!
//! All of them may be called between clone and exec: no allocation, no lock.

#![allow(unsafe_code)] // doors to the kernel

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter};
use rustix::process::Pid;

/// Which side of a clone the caller is on.
pub enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Makes a child with a copy of this process's memory, in new namespaces as `flags` (`CLONE_NEW…`) say; on cgroup v2 it
/// is born into `cgroup`, so that it never runs outside.
///
/// # Errors
/// `EPERM` without the capabilities · `EAGAIN` a pids limit · `ENOSPC` too many namespaces · `EBUSY` the cgroup is not a leaf.
///
/// Source: clone3(2); `CLONE_INTO_CGROUP`, Linux 5.7.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    clone(args)
}

/// `struct clone_args`, linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone(mut args: CloneArgs) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: `args` is a clone_args of exactly the size passed. Without CLONE_VM the child has its own copy of this
    // stack, and this program has one thread, so every lock is free in the copy.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => Ok(Cloned::Child),
        -1 => Err(errno()),
        pid => {
            let pid = Pid::from_raw(pid as i32).expect("a child's pid is positive");
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so this is a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Joins namespaces: the one that a descriptor of /proc/PID/ns refers to, or several of the process that a pidfd refers to.
///
/// # Errors
/// `EPERM` · `EINVAL` not of that kind · `ESRCH` the process is gone.
///
/// Source: setns(2); with a pidfd, Linux 5.8.
pub fn setns(namespace: BorrowedFd<'_>, kinds: u64) -> Result<(), Errno> {
    // SAFETY: it takes two numbers; this program has one thread, so no other one is left behind in the old namespaces.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), kinds) })
}

/// Strings as execve(2) wants them: pointers to each, then a null. Built by the parent, only walked by the child.
#[derive(Debug)]
pub struct CStrArray {
    pointers: Vec<*const c_char>,
    strings: Vec<CString>,
}

impl CStrArray {
    pub fn new(strings: Vec<CString>) -> CStrArray {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        CStrArray { pointers, strings }
    }

    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Becomes another program. Returns only if that was refused.
///
/// Source: execve(2).
pub fn execve(path: &CStr, argv: &CStrArray, environment: &CStrArray) -> Result<Infallible, Errno> {
    // SAFETY: all pointers are to strings that end in a zero byte and live in the two arrays; each array ends in a null.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), environment.pointers.as_ptr()) };
    Err(errno())
}

/// `struct mount_attr`, linux/mount.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns: u64,
}

/// Changes the mount that `mount` refers to, and with `recursive` all mounts below it.
///
/// # Errors
/// `EPERM` an attribute is locked by another user namespace · `EINVAL` not the root of a mount.
///
/// Source: mount_setattr(2), Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (path, size) = (c"".as_ptr(), size_of::<MountAttr>());
    // SAFETY: the path is a string, and `attr` is a mount_attr of exactly the size passed.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), path, flags, &raw const *attr, size) })
}

/// Marks every descriptor from `first` on to be closed by the next execve.
///
/// Source: close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: it takes three numbers; descriptors stay open.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Leaves the session keyring of whoever started us for a new one.
///
/// # Errors
/// `ENOSYS` the kernel has no keyrings · `EDQUOT` too many keys.
///
/// Source: keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
pub fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a string that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets the execution domain.
///
/// Source: personality(2).
pub fn personality(domain: u64) -> Result<(), Errno> {
    // SAFETY: it takes a number.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) })
}

/// `struct sched_attr`, linux/sched/types.h, as of Linux 5.3.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

/// Decides how this process gets processor time.
///
/// # Errors
/// `EPERM` · `EINVAL` attributes that do not go together · `EBUSY` no room for another deadline.
///
/// Source: sched_setattr(2).
pub fn sched_setattr(attr: &SchedAttr) -> Result<(), Errno> {
    // SAFETY: `attr` is a sched_attr that says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attr, 0) })
}

/// Lets this process run on those processors only that have a bit in `mask`; those that are not there do not count.
///
/// # Errors
/// `EINVAL` none is left.
///
/// Source: sched_setaffinity(2).
pub fn sched_setaffinity(mask: &[u64]) -> Result<(), Errno> {
    // SAFETY: the mask is as long as said.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) })
}

/// Sets this process's I/O priority.
///
/// Source: ioprio_set(2), `IOPRIO_WHO_PROCESS`.
pub fn ioprio_set(priority: i32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: it takes numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })
}

/// Decides on which NUMA nodes memory is allocated.
///
/// # Errors
/// `EINVAL` a node that is not there, or a mode that takes none.
///
/// Source: set_mempolicy(2).
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    let (pointer, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: the mask has as many bits as said, less the one that the kernel takes off; or there is none.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })
}

/// Closes every descriptor from `first` on except `kept`, which are marked to be closed by the next execve.
///
/// Source: close_range(2).
pub fn close_all_but(first: RawFd, mut kept: [RawFd; 3]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut from = first;
    for kept in kept {
        if kept < from {
            continue; // not open at all, or below what is closed
        }
        if kept > from {
            // SAFETY: it takes numbers; nothing of what is closed is used any more, as the caller says by calling.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, kept - 1, 0) })?;
        }
        from = kept + 1;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, 0) })?;
    close_on_exec_from(first)
}

/// Writes a descriptor's number over another: `slot` becomes a copy of `fd` that stays open over execve.
///
/// Source: dup2(2).
pub fn dup_to(fd: BorrowedFd<'_>, slot: RawFd) -> Result<(), Errno> {
    // SAFETY: both are numbers; the caller gives up what `slot` was, which is only done for 0, 1 and 2.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), slot, 0) })
}

/// Unlocks a new terminal's other side.
///
/// Source: ioctl_tty(2), `TIOCSPTLCK`.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int through the pointer.
    check(unsafe { libc::syscall(libc::SYS_ioctl, master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })
}

/// The kind of namespace, as a `CLONE_NEW…` flag, that a descriptor refers to.
///
/// Source: ioctl_nsfs(2), `NS_GET_NSTYPE`.
pub fn namespace_type(namespace: BorrowedFd<'_>) -> Result<u64, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::syscall(libc::SYS_ioctl, namespace.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(errno()) } else { Ok(kind as u64) }
}

/// Takes over a descriptor that was handed to this process by number, as `LISTEN_FDS` and `--preserve-fds` do.
///
/// # Errors
/// `EBADF` nothing is open under that number.
pub fn is_open(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: F_GETFD takes no argument and changes nothing.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) })
}

/// Lets a descriptor, by number, survive execve.
///
/// # Errors
/// `EBADF` nothing is open under that number.
pub fn keep_over_exec(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: F_SETFD takes a number.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, 0) })
}

/// Lets all signals through and gives `SIGPIPE`, which Rust's start-up ignores, its default action again.
///
/// Source: sigaction(2), sigprocmask(2), signal(7) on what execve keeps.
pub fn reset_signals() -> Result<(), Errno> {
    let default: [u64; 4] = [0; 4]; // struct kernel_sigaction: SIG_DFL, no flags, no restorer, an empty mask
    // SAFETY: a kernel_sigaction of the right size, with default action: no handler can be called.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGPIPE, default.as_ptr(), 0usize, 8usize) })?;
    let none: u64 = 0;
    // SAFETY: the set is eight bytes, as passed; no old set is asked for.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0usize, 8usize) })
}

/// Ends the process by every signal whose default that is: as the first process of a PID namespace it would not get the
/// default actions of any but `SIGKILL`. The next execve gives them back.
///
/// Source: pid_namespaces(7), "The namespace init process".
pub fn end_by_signals() {
    extern "C" fn end(signal: libc::c_int) {
        exit(128 + signal);
    }
    const OTHERS: [libc::c_int; 8] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGTSTP,
        libc::SIGTTIN,
    ];
    let handler: extern "C" fn(libc::c_int) = end;
    for signal in (1..libc::SIGSYS).filter(|signal| !OTHERS.contains(signal) && *signal != libc::SIGTTOU) {
        // SAFETY: the handler makes one call, _exit, which is safe in any handler. A signal that cannot be caught stays.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Makes a sibling: a child of this process's own parent, in new namespaces that belong to the user namespace that this
/// process is in.
///
/// # Errors
/// As [`clone3`].
pub fn clone_sibling(flags: u64) -> Result<Cloned, Errno> {
    clone(CloneArgs { flags: flags | libc::CLONE_PARENT as u64, ..CloneArgs::default() })
}

/// Takes a capability out of what this process and its children can ever have.
///
/// Source: prctl(2), `PR_CAPBSET_DROP`.
pub fn drop_from_bounding(capability: u32) -> Result<(), Errno> {
    // SAFETY: it takes numbers.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })
}

/// Adds a capability, which is permitted and inheritable, to those that survive execve.
///
/// Source: prctl(2), `PR_CAP_AMBIENT_RAISE`; Linux 4.3.
pub fn raise_ambient(capability: u32) -> Result<(), Errno> {
    let (option, raise) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE);
    // SAFETY: it takes numbers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, raise, capability, 0, 0) })
}

/// Writes the current folder's path into `buffer`; it begins with `/` exactly if the folder lies below the root.
///
/// # Errors
/// `ENOENT` the folder was removed · `ERANGE` the buffer is too small.
///
/// Source: getcwd(2).
pub fn working_folder(buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    if length < 0 { Err(errno()) } else { Ok(length as usize) }
}

/// Brings this network namespace's loopback interface up.
///
/// A bare call, which may be made beside others: see `thread`.
///
/// Source: netdevice(7), `SIOCSIFFLAGS`.
pub fn loopback_up() -> Result<(), Errno> {
    const SET_FLAGS: Opcode = libc::SIOCSIFFLAGS as Opcode;
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request =
        InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: libc::IFF_UP as libc::c_short, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq, which this is a prefix-compatible, full-size copy of.
    let set = unsafe { Setter::<SET_FLAGS, InterfaceRequest>::new(request) };
    // SAFETY: as above; the socket is one.
    unsafe { rustix::ioctl::ioctl(&socket, set) }
}

/// Blocks all signals that can be blocked and gives a descriptor that reads as the next of them.
///
/// Source: sigprocmask(2), signalfd(2).
pub fn signals_as_descriptor() -> Result<OwnedFd, Errno> {
    let all = u64::MAX;
    let (set, size) = (&raw const all, 8usize);
    // SAFETY: the set is eight bytes, as passed; no old set is asked for.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, set, 0usize, size) })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is eight bytes, as passed.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, set, size, flags) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: signalfd4 succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The next signal that has arrived, if there is one.
///
/// Source: signalfd(2), `struct signalfd_siginfo`, whose first field is the number.
pub fn next_signal(signals: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
    let mut information = [0u8; 128];
    match rustix::io::read(signals, &mut information) {
        Ok(_) => Ok(information.first_chunk().map(|number| i32::from_ne_bytes(*number))),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sends a signal that may be a real-time one.
///
/// Source: pidfd_send_signal(2).
pub fn pidfd_send_any_signal(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: it takes numbers; without information the kernel fills it as kill(2) does.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, 0usize, 0) })
}

/// A child that has ended and was not waited for yet, without waiting for it.
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

/// Ends the process at once: no handler, no destructor, nothing flushed.
///
/// Source: _exit(2).
pub fn exit(status: i32) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(status) }
}

fn check(answer: libc::c_long) -> Result<(), Errno> {
    if answer < 0 { Err(errno()) } else { Ok(()) }
}

/// Why this thread's last call failed.
fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
