//! The one process of a pod without containers: it lives in all of the pod's namespaces, and holds them.
//!
//! Whoever joins the pod does so by `/proc/PID/ns` of this process; where containers share the pod's PID namespace it is
//! their pid 1. It has no C library, opens nothing and allocates nothing: a few pages for as long as the pod lives.
//! `build.rs` compiles it, and the shim carries it along.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // a program of system calls

use core::arch::{asm, global_asm};

const SIG_SETMASK: usize = 2;
const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
const SA_NOCLDWAIT: usize = 2;
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {main}", main = sym main, options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {main}", main = sym main);

extern "C" fn main() -> ! {
    // Orphans of the pod become our children; ignored like this, the kernel reaps each the moment it ends: sigaction(2).
    let reaped: [usize; 4] = [SIG_IGN, SA_NOCLDWAIT, 0, 0];
    call(number::RT_SIGACTION, [SIGCHLD, reaped.as_ptr() as usize, 0, 8]);
    // Some may have ended before: on a busy node we come to run long after the pod is there.
    while call(number::WAIT4, [usize::MAX, 0, WNOHANG, 0]) > 0 {}
    // Blocked, so that they wait for us: a pid 1 never sees those that it has no handler for.
    let asked_to_end: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1);
    let set = &raw const asked_to_end as usize;
    call(number::RT_SIGPROCMASK, [SIG_SETMASK, set, 0, 8]);
    while call(number::RT_SIGTIMEDWAIT, [set, 0, 0, 8]) < 0 {}
    loop {
        call(number::EXIT_GROUP, [0; 4]);
    }
}

fn call(number: usize, arguments: [usize; 4]) -> isize {
    let [a, b, c, d] = arguments;
    let answer;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the calls above read what their pointers point to, which lives on our stack, and write nothing.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    answer
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
