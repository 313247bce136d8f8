//! The profile of a pod whose profile is the runtime's default.
//!
//! Containers get the field's long list of calls that may be made; the pod's init makes five, so its list has those, and
//! what runtimes need between loading the filter and executing it (Go's, for some).

use serde_json::{Value, json};

const CALLS: &[&str] = &[
    // The init's own.
    "rt_sigaction rt_sigprocmask rt_sigtimedwait wait4 exit_group",
    // Files, and the gate that `start` opens.
    "chdir close close_range dup dup3 fchdir fchown fcntl fstat fstatfs getcwd getdents64 ioctl lseek newfstatat open",
    "openat openat2 pipe2 poll ppoll pread64 read readlinkat recvfrom recvmsg sendmsg sendto stat statx umask write",
    // Who it is, and what it runs.
    "capget capset execve execveat exit getegid geteuid getgid getpid getppid gettid getuid prctl setgid setgroups",
    "setresgid setresuid setsid setuid",
    // A language's own runtime.
    "brk clock_gettime epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 futex getrandom madvise mmap mprotect",
    "munmap nanosleep restart_syscall rt_sigreturn sched_getaffinity sched_yield set_robust_list set_tid_address",
    "sigaltstack tgkill",
];

/// Anything else is refused with `EPERM`.
pub fn default() -> Value {
    let architecture = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    let names: Vec<&str> = CALLS.iter().flat_map(|line| line.split(' ')).collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    })
}
