//! The floor under `tare run`: the system calls that a container of the default specification needs, and nothing else.
//!
//! `floor ROOTFS FILTER` makes the same namespaces, mounts, nodes, masks and limits as `tare` does, loads the same filter
//! (FILTER is the file with its instructions), executes /bin/true in ROOTFS and returns its status. It has no C library,
//! reads no JSON, keeps no state, makes no cgroup and says nothing: it ends with the number of the step that failed.
//! What `tare run` takes beyond this is the price of being a runtime.

#![no_main]
#![allow(unsafe_code)] // a program of system calls

use core::ffi::CStr;

use tare_floor::{self as sys, Failed, call};

tare_floor::entry!(main);

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc first, then argv and what follows it: never fewer than four words.
    let [count, _, rootfs, filter] = unsafe { *stack.cast::<[usize; 4]>() };
    if count != 3 {
        sys::exit(100);
    }
    match run(rootfs as *const u8, filter as *const u8) {
        Ok(status) => sys::exit(status),
        Err(Failed(step)) => sys::exit(100 + step),
    }
}

/// The parent: the filter's bytes, a child in new namespaces, its end.
fn run(rootfs: *const u8, filter: *const u8) -> Result<i32, Failed> {
    let file = call(1, sys::OPEN, [filter as usize, 0, 0, 0, 0])?;
    let length = call(1, sys::LSEEK, [file, 0, sys::SEEK_END, 0, 0])?;
    // Mapped, not read: an array on the stack would be cleared by the C library's memset, which is not set up here.
    let instructions = call(1, sys::MMAP, [0, length, sys::PROT_READ, sys::MAP_PRIVATE, file])? as *const u8;
    let flags = sys::NEWNS | sys::NEWPID | sys::NEWNET | sys::NEWIPC | sys::NEWUTS;
    let arguments: [u64; 8] = [flags, 0, 0, 0, sys::SIGCHLD, 0, 0, 0]; // struct clone_args up to tls, clone3(2)
    let child = call(2, sys::CLONE3, [arguments.as_ptr() as usize, size_of_val(&arguments), 0, 0, 0])?;
    if child == 0 {
        let end = contain(rootfs, instructions, length);
        sys::exit(end.err().map_or(0, |Failed(step)| 100 + step));
    }
    let mut status = 0i32;
    call(3, sys::WAIT4, [child, &raw mut status as usize, 0, 0, 0])?;
    Ok(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
}

/// File system, place, flags, data of each mount of the default specification.
const MOUNTS: &[(&CStr, &CStr, usize, &CStr)] = &[
    (c"proc", c"proc", sys::NOSUID | sys::NODEV | sys::NOEXEC, c""),
    (c"tmpfs", c"dev", sys::NOSUID | sys::STRICTATIME, c"mode=755,size=65536k"),
    (c"devpts", c"dev/pts", sys::NOSUID | sys::NOEXEC, c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
    (c"tmpfs", c"dev/shm", sys::NOSUID | sys::NODEV | sys::NOEXEC, c"mode=1777,size=65536k"),
    (c"mqueue", c"dev/mqueue", sys::NOSUID | sys::NODEV | sys::NOEXEC, c""),
    (c"sysfs", c"sys", sys::NOSUID | sys::NODEV | sys::NOEXEC | sys::RDONLY, c""),
    (c"tmpfs", c"run", sys::NOSUID | sys::STRICTATIME, c"mode=755,size=65536k"),
];

/// Name and device number of each node that the specification promises.
const NODES: &[(&CStr, usize)] = &[
    (c"dev/null", sys::device(1, 3)),
    (c"dev/zero", sys::device(1, 5)),
    (c"dev/full", sys::device(1, 7)),
    (c"dev/random", sys::device(1, 8)),
    (c"dev/urandom", sys::device(1, 9)),
    (c"dev/tty", sys::device(5, 0)),
];

const LINKS: &[(&CStr, &CStr)] = &[
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

const READONLY: &[&CStr] = &[c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

/// Masked paths; those that do not exist are passed over, as the specification wants.
const MASKED: &[&CStr] = &[
    c"proc/acpi",
    c"proc/asound",
    c"proc/kcore",
    c"proc/keys",
    c"proc/latency_stats",
    c"proc/timer_list",
    c"proc/timer_stats",
    c"proc/sched_debug",
    c"sys/firmware",
    c"sys/devices/virtual/powercap",
    c"proc/scsi",
];

/// The child: everything between clone and exec. It returns only where it failed.
fn contain(rootfs: *const u8, instructions: *const u8, length: usize) -> Result<(), Failed> {
    let null = c"".as_ptr() as usize;
    let text = |text: &CStr| text.as_ptr() as usize;
    call(10, sys::SETSID, [0; 5])?;
    call(11, sys::UNSHARE, [sys::NEWCGROUP as usize, 0, 0, 0, 0])?;
    loopback()?;
    call(12, sys::SETHOSTNAME, [text(c"bench"), 5, 0, 0, 0])?;
    call(13, sys::MOUNT, [null, text(c"/"), null, sys::SLAVE | sys::REC, 0])?;
    call(14, sys::MOUNT, [rootfs as usize, rootfs as usize, null, sys::BIND | sys::REC, 0])?;
    call(15, sys::CHDIR, [rootfs as usize, 0, 0, 0, 0])?;
    for (kind, place, flags, data) in MOUNTS {
        // Those below /dev need their folder; in the root file system it is there.
        let _ = call(16, sys::MKDIR, [text(place), 0o755, 0, 0, 0]);
        call(17, sys::MOUNT, [text(kind), text(place), text(kind), *flags, text(data)])?;
    }
    call(18, sys::UMASK, [0; 5])?;
    for (path, number) in NODES {
        call(19, sys::MKNOD, [text(path), 0o020_666, *number, 0, 0])?;
    }
    for (target, path) in LINKS {
        call(20, sys::SYMLINK, [text(target), text(path), 0, 0, 0])?;
    }
    call(21, sys::PIVOT_ROOT, [text(c"."), text(c"."), 0, 0, 0])?;
    call(22, sys::UMOUNT2, [text(c"."), sys::DETACH, 0, 0, 0])?;
    call(23, sys::CHDIR, [text(c"/"), 0, 0, 0, 0])?;
    call(24, sys::MOUNT, [null, text(c"/"), null, sys::BIND | sys::REMOUNT | sys::RDONLY, 0])?;
    for path in READONLY {
        if call(25, sys::MOUNT, [text(path), text(path), null, sys::BIND | sys::REC, 0]).is_ok() {
            let flags = sys::BIND | sys::REMOUNT | sys::RDONLY | sys::NOSUID | sys::NODEV | sys::NOEXEC;
            call(26, sys::MOUNT, [null, text(path), null, flags, 0])?;
        }
    }
    for path in MASKED {
        if call(27, sys::MOUNT, [text(c"dev/null"), text(path), null, sys::BIND, 0]).is_err() {
            // Not there, or a folder.
            let _ =
                call(28, sys::MOUNT, [text(c"tmpfs"), text(path), text(c"tmpfs"), sys::RDONLY, text(c"nr_inodes=1")]);
        }
    }
    call(29, sys::KEYCTL, [sys::KEYCTL_JOIN_SESSION_KEYRING, text(c"bench"), 0, 0, 0])?;
    limit_and_drop()?;
    let program = sys::Program { length: (length / 8) as u16, instructions };
    call(37, sys::SECCOMP, [1, 0, &raw const program as usize, 0, 0])?;
    call(38, sys::CLOSE_RANGE, [3, u32::MAX as usize, sys::CLOSE_ON_EXEC, 0, 0])?;
    let argv = [c"/bin/true".as_ptr(), core::ptr::null()];
    let environment = [c"PATH=/bin".as_ptr(), core::ptr::null()];
    call(39, sys::EXECVE, [argv[0] as usize, argv.as_ptr() as usize, environment.as_ptr() as usize, 0, 0])?;
    Ok(())
}

/// The network namespace's own interface, brought up.
fn loopback() -> Result<(), Failed> {
    // struct ifreq: sixteen bytes of name, then the flags; netdevice(7).
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let request = Request { name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", flags: sys::IFF_UP, rest: [0; 22] };
    let socket = call(40, sys::SOCKET, [sys::AF_INET, sys::SOCK_DGRAM, 0, 0, 0])?;
    call(41, sys::IOCTL, [socket, sys::SIOCSIFFLAGS, &raw const request as usize, 0, 0])?;
    call(42, sys::CLOSE, [socket, 0, 0, 0, 0])?;
    Ok(())
}

/// Open files, capabilities and privileges of the default specification.
fn limit_and_drop() -> Result<(), Failed> {
    const KEPT: u64 = 0xa804_25fb; // the fourteen capabilities of containerd's default
    let files: [u64; 2] = [1024, 1024];
    call(30, sys::PRLIMIT64, [0, 7, files.as_ptr() as usize, 0, 0])?;
    for capability in 0..=40usize {
        if KEPT >> capability & 1 == 0 {
            call(31, sys::PRCTL, [sys::PR_CAPBSET_DROP, capability, 0, 0, 0])?;
        }
    }
    call(32, sys::SETGROUPS, [0; 5])?;
    call(33, sys::SETRESGID, [0; 5])?;
    call(34, sys::SETRESUID, [0; 5])?;
    let header: [u32; 2] = [0x2008_0522, 0];
    let (low, high) = (KEPT as u32, (KEPT >> 32) as u32);
    let sets: [u32; 6] = [low, low, 0, high, high, 0]; // effective, permitted, inheritable; capset(2)
    call(35, sys::CAPSET, [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0])?;
    call(36, sys::PRCTL, [sys::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0])?;
    Ok(())
}
