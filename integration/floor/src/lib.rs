//! What a program without a C library needs: an entry, and system calls by number, for x86_64.
//! Source: asm/unistd_64.h, linux/mount.h, linux/sched.h, linux/prctl.h.

#![allow(unsafe_code)] // system calls

use core::arch::asm;

/// Makes `main`, an `extern "C" fn(*const usize) -> !`, the program: it is given the stack as execve(2) left it, argc first,
/// then argv and the environment.
#[macro_export]
macro_rules! entry {
    ($main:ident) => {
        #[cfg(target_arch = "x86_64")]
        core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "xor %ebp, %ebp",
            "mov %rsp, %rdi",
            "and $-16, %rsp",
            "call {main}",
            "hlt",
            main = sym $main,
            options(att_syntax)
        );
    };
}

/// The step that failed; the program's status tells it.
pub struct Failed(pub i32);

pub const WRITE: usize = 1;
pub const OPEN: usize = 2;
pub const CLOSE: usize = 3;
pub const LSEEK: usize = 8;
pub const MMAP: usize = 9;
pub const IOCTL: usize = 16;
pub const SOCKET: usize = 41;
pub const FORK: usize = 57;
pub const EXECVE: usize = 59;
pub const WAIT4: usize = 61;
pub const CHDIR: usize = 80;
pub const MKDIR: usize = 83;
pub const SYMLINK: usize = 88;
pub const UMASK: usize = 95;
pub const SETSID: usize = 112;
pub const SETGROUPS: usize = 116;
pub const SETRESUID: usize = 117;
pub const SETRESGID: usize = 119;
pub const CAPSET: usize = 126;
pub const MKNOD: usize = 133;
pub const PIVOT_ROOT: usize = 155;
pub const PRCTL: usize = 157;
pub const MOUNT: usize = 165;
pub const UMOUNT2: usize = 166;
pub const SETHOSTNAME: usize = 170;
pub const EXIT_GROUP: usize = 231;
pub const KEYCTL: usize = 250;
pub const UNSHARE: usize = 272;
pub const PRLIMIT64: usize = 302;
pub const SECCOMP: usize = 317;
pub const CLONE3: usize = 435;
pub const CLOSE_RANGE: usize = 436;

pub const NEWNS: u64 = 0x0002_0000;
pub const NEWCGROUP: u64 = 0x0200_0000;
pub const NEWUTS: u64 = 0x0400_0000;
pub const NEWIPC: u64 = 0x0800_0000;
pub const NEWPID: u64 = 0x2000_0000;
pub const NEWNET: u64 = 0x4000_0000;
pub const SIGCHLD: u64 = 17;

pub const RDONLY: usize = 1;
pub const NOSUID: usize = 2;
pub const NODEV: usize = 4;
pub const NOEXEC: usize = 8;
pub const REMOUNT: usize = 32;
pub const BIND: usize = 4096;
pub const REC: usize = 16384;
pub const SLAVE: usize = 1 << 19;
pub const STRICTATIME: usize = 1 << 24;
pub const DETACH: usize = 2;

pub const AF_INET: usize = 2;
pub const SOCK_DGRAM: usize = 2;
pub const SIOCSIFFLAGS: usize = 0x8914;
pub const IFF_UP: u16 = 1;
pub const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;

pub const SEEK_END: usize = 2;
pub const PROT_READ: usize = 1;
pub const MAP_PRIVATE: usize = 2;
pub const CLOSE_ON_EXEC: usize = 4;
pub const PR_CAPBSET_DROP: usize = 24;
pub const PR_SET_NO_NEW_PRIVS: usize = 38;

/// `struct sock_fprog`.
#[repr(C)]
pub struct Program {
    pub length: u16,
    pub instructions: *const u8,
}

/// A device number as mknod(2) wants it, for small numbers.
pub const fn device(major: usize, minor: usize) -> usize {
    major << 8 | minor
}

/// Makes a system call; a refusal becomes the step it was made in.
pub fn call(step: i32, number: usize, arguments: [usize; 5]) -> Result<usize, Failed> {
    let answer: isize;
    // SAFETY: each caller passes what the call of that number takes; pointers are to data that outlives the call. The
    // kernel changes rcx and r11 and no other register.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => answer,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") 0usize,
            out("rcx") _,
            out("r11") _,
        );
    }
    usize::try_from(answer).map_err(|_| Failed(step))
}

pub fn exit(status: i32) -> ! {
    let _ = call(0, EXIT_GROUP, [status as usize, 0, 0, 0, 0]);
    loop {
        core::hint::spin_loop(); // exit_group does not return
    }
}
