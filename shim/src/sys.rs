//! The few calls without a safe door elsewhere.

#![allow(unsafe_code)] // doors to the kernel and to the allocator; nothing else is here

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Pid;

/// Blocks `SIGCHLD`, `SIGTERM` and `SIGINT`, and returns a descriptor that reads as the next of them.
///
/// Source: sigprocmask(2), signalfd(2).
pub fn signals() -> Result<OwnedFd, Errno> {
    let set: u64 = 1 << (libc::SIGCHLD - 1) | 1 << (libc::SIGTERM - 1) | 1 << (libc::SIGINT - 1);
    // SAFETY: the set is eight bytes, as passed; the old one is not asked for.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, 0usize, 8usize) })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is eight bytes, as passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, 8usize, flags) })?;
    // SAFETY: signalfd4 succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptors are small")) })
}

/// A child that has ended and was not reaped yet.
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

/// Sends any signal, real-time ones too, to the process that a pidfd refers to.
///
/// Source: pidfd_send_signal(2).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: it takes numbers; without information the kernel fills it as kill(2) does.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0) }).map(drop)
}

/// The user namespace that owns a namespace.
///
/// Source: ioctl_ns(2), `NS_GET_USERNS`.
pub fn owner_of_namespace(namespace: &std::fs::File) -> Result<OwnedFd, Errno> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: this request takes no argument.
    let fd = check(unsafe { libc::syscall(libc::SYS_ioctl, namespace.as_raw_fd(), NS_GET_USERNS) })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptors are small")) })
}

/// A process that does nothing, in a user namespace of its own that maps no ids yet. To be [`end`]ed; it ends with us.
///
/// Source: clone3(2), `CLONE_NEWUSER`. We have one thread, so the child's memory is whole; it only makes system calls.
pub fn in_new_user_namespace() -> Result<Pid, Errno> {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let args: [u64; 8] = [libc::CLONE_NEWUSER as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: the argument is a clone_args of exactly the size passed, and asks for a copy of our memory, as fork(2).
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) })?;
    if pid == 0 {
        // SAFETY: it takes numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // SAFETY: it takes nothing.
            unsafe { libc::pause() };
        }
    }
    Ok(Pid::from_raw(i32::try_from(pid).expect("process numbers are small")).expect("a child has a number"))
}

/// Kills a child of ours and reaps it.
pub fn end(pid: Pid) -> Result<(), Errno> {
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).map(drop)
}

/// `struct mount_attr`, linux/mount.h.
#[repr(C)]
pub struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

impl MountAttr {
    /// Files' owners are seen through `userns`; `set` are further attributes.
    pub fn with_ids_of(userns: BorrowedFd<'_>, set: u64) -> MountAttr {
        const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
        let userns = userns.as_raw_fd().cast_unsigned().into();
        MountAttr { set: MOUNT_ATTR_IDMAP | set, clear: 0, propagation: 0, userns }
    }
}

/// Changes the mount that `tree` refers to, and with `recursive` all below it.
///
/// Source: mount_setattr(2), Linux 5.12.
pub fn mount_setattr(tree: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (path, size) = (c"".as_ptr(), size_of::<MountAttr>());
    // SAFETY: the path is a string, and `attr` is a mount_attr of exactly the size passed.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), path, flags, &raw const *attr, size) })
        .map(drop)
}

/// The number of a loop device that nobody uses.
///
/// Source: loop(4), `LOOP_CTL_GET_FREE`.
pub fn free_loop_device(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    // SAFETY: this request takes no argument.
    let number = check(unsafe { libc::syscall(libc::SYS_ioctl, control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    Ok(u32::try_from(number).expect("devices are counted from 0"))
}

/// Has a loop device show `backing`, until nobody has the device open or mounted.
///
/// # Errors
/// `EBUSY` another one was quicker.
///
/// Source: loop(4), `LOOP_CONFIGURE`, Linux 5.8.
pub fn configure_loop_device(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    is_read_only: bool,
    direct: bool,
) -> Result<(), Errno> {
    const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    const DIRECT: u32 = 16;
    // struct loop_config: the descriptor, a block size, and struct loop_info64 (232 bytes, flags at 52), then 64 bytes.
    let mut config = [0u32; 76];
    config[0] = backing.as_raw_fd().cast_unsigned();
    config[2 + 52 / 4] = AUTOCLEAR | if is_read_only { READ_ONLY } else { 0 } | if direct { DIRECT } else { 0 };
    // SAFETY: the argument is a loop_config, of 304 bytes, that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_ioctl, device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) }).map(drop)
}

/// Has `command` run with `fds` as its descriptors 3, 4, 5 and so on.
///
/// # Errors
/// There are too many descriptors.
pub fn pass_from_3(command: &mut Command, fds: &[OwnedFd]) -> Result<(), Errno> {
    let above = 3 + i32::try_from(fds.len()).expect("a handful");
    // Out of the way of the numbers they are to get.
    let high: Vec<OwnedFd> =
        fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, above)).collect::<Result<_, _>>()?;
    let place = move || {
        for (fd, number) in high.iter().zip(3..) {
            // SAFETY: dup2 takes numbers, and is async-signal-safe; nothing of ours has these numbers in the child.
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it calls dup2 only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(place) };
    Ok(())
}

/// Has `command` killed when we are: what it was doing would go on unseen, while the daemon has another clean up.
///
/// Source: prctl(2), `PR_SET_PDEATHSIG`; what the command starts is not killed with it.
pub fn die_with_us(command: &mut Command) {
    let ours = rustix::process::getpid().as_raw_nonzero().get();
    let ask = move || {
        // SAFETY: it takes numbers, and is a plain system call.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it takes nothing. We may have died before the call above.
        if unsafe { libc::getppid() } == ours { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec it makes two system calls; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(ask) };
}

/// Closes every descriptor from 3 on: what a daemon or its parents left open is not to live as long as we do.
/// To be called before anything is opened.
///
/// Source: close_range(2).
pub fn close_inherited() -> Result<(), Errno> {
    // SAFETY: it takes numbers; nothing in this process owns a descriptor but 0 to 2 yet.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) }).map(drop)
}

/// Keeps the heap small: freed memory goes back at once, and large pieces are mapped on their own.
///
/// Source: mallopt(3).
pub fn keep_heap_small() {
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, 32 << 10),
        (libc::M_TOP_PAD, 0),
        (libc::M_MMAP_THRESHOLD, 64 << 10),
        (libc::M_ARENA_MAX, 1), // the writer of logs has threads; they share one heap
    ] {
        // SAFETY: it takes numbers, and runs before any other thread could.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives freed pages back: what one request needed is not to stay for months.
///
/// Source: malloc_trim(3).
pub fn trim_heap() {
    // SAFETY: it takes a number and touches only the allocator's own memory.
    unsafe { libc::malloc_trim(0) };
}

fn check(answer: libc::c_long) -> Result<libc::c_long, Errno> {
    if answer >= 0 {
        return Ok(answer);
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
