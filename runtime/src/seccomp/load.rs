//! Hands a program to the kernel. Called between clone and exec: it allocates nothing.

#![allow(unsafe_code)] // seccomp(2) has no wrapper that takes a program compiled elsewhere

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::Program;

/// `struct sock_fprog`, linux/filter.h.
#[repr(C)]
struct Described {
    length: u16,
    instructions: *const super::Instruction,
}

/// Puts the calling thread under `program`, for good. Gives the descriptor on which notifications arrive, if the program
/// has such an action.
///
/// # Errors
/// `EACCES` neither no_new_privs nor `CAP_SYS_ADMIN` · `EINVAL` a flag that this kernel lacks · `EBUSY` another filter
/// has a listener already.
///
/// Source: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
pub fn load(program: &Program) -> Result<Option<OwnedFd>, Errno> {
    const SET_MODE_FILTER: libc::c_uint = 1;
    let described = Described {
        length: u16::try_from(program.instructions.len()).map_err(|_| Errno::INVAL)?,
        instructions: program.instructions.as_ptr(),
    };
    // SAFETY: `described` points at `length` instructions that live through the call; the kernel copies and checks them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, program.flags, &raw const described) };
    match (done, program.listener.is_some()) {
        (-1, _) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        // SAFETY: with NEW_LISTENER, which a program with a listener has, success is a new descriptor nobody else owns.
        (fd, true) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        // With TSYNC alone, a positive result is a thread that could not be brought along.
        (0, false) => Ok(None),
        (_, false) => Err(Errno::SRCH),
    }
}

/// Whether a call of x32 can do anything but fail with `ENOSYS`: few kernels are built or booted with it. Asked by making
/// one, unless we are under a filter ourselves, which might kill us for it.
#[cfg(target_arch = "x86_64")]
pub fn kernel_may_know_x32() -> bool {
    const X32_GETPID: libc::c_long = (1 << 30) | libc::SYS_getpid;
    // SAFETY: plain integers.
    let mode = unsafe { libc::prctl(libc::PR_GET_SECCOMP) };
    // SAFETY: getpid takes nothing and changes nothing.
    mode != 0 || unsafe { libc::syscall(X32_GETPID) } >= 0
}

#[cfg(not(target_arch = "x86_64"))]
pub fn kernel_may_know_x32() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use super::*;
    use crate::spec::Seccomp;

    /// Runs `check` in a child under the filter and gives the child's exit code, or minus the signal that ended it.
    fn under(profile: &serde_json::Value, check: fn() -> i32) -> i32 {
        let seccomp: Seccomp = serde_json::from_value(profile.clone()).unwrap();
        let program = compile(&seccomp).unwrap();
        // SAFETY: the child calls prctl, seccomp, what `check` calls, and _exit: nothing that takes a lock.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: plain integers.
            let private = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            let code = if private == 0 && load(&program).is_ok() { check() } else { 100 };
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
        let mut status = 0;
        // SAFETY: `status` is a place for an int; the child is ours.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
    }

    fn errno_of(number: i64, argument: u64) -> i32 {
        // SAFETY: the calls that are made here take no pointers, or are refused before they look at them.
        let result = unsafe { libc::syscall(number, argument, 0u64, 0u64, 0u64, 0u64, 0u64) };
        if result >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(101) }
    }

    #[test]
    fn the_kernel_does_what_the_profile_says() {
        let profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 77,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["exit_group", "getppid"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpgid"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
                {"names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 55},
                {"names": ["getgid"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["geteuid"], "action": "SCMP_ACT_TRAP"},
            ],
        });
        assert_eq!(under(&profile, || errno_of(libc::SYS_getppid, 0)), 0);
        assert_eq!(under(&profile, || errno_of(libc::SYS_getpgid, 0)), 0);
        assert_eq!(under(&profile, || errno_of(libc::SYS_getpgid, 1 << 32)), 77);
        assert_eq!(under(&profile, || errno_of(libc::SYS_getuid, 0)), 55);
        assert_eq!(under(&profile, || errno_of(libc::SYS_getsid, 0)), 77);
        assert_eq!(under(&profile, || errno_of(470, 0)), libc::ENOSYS);
        assert_eq!(under(&profile, || errno_of(libc::SYS_getgid, 0)), -libc::SIGSYS);
        assert_eq!(under(&profile, || errno_of(libc::SYS_geteuid, 0)), -libc::SIGSYS);
    }

    /// The number of a call that is allowed, made in the way of an architecture that is not listed.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_is_no_way_around_the_filter() {
        let mut profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 55}],
        });
        const X32_GETPPID: i64 = (1 << 30) | 110;
        assert_eq!(under(&profile, || errno_of(X32_GETPPID, 0)), -libc::SIGSYS);
        profile["architectures"] = serde_json::json!(["SCMP_ARCH_X32"]);
        let expect = if kernel_may_know_x32() { 55 } else { libc::ENOSYS };
        assert_eq!(under(&profile, || errno_of(X32_GETPPID, 0)), expect);
    }
}
