//! Puts the runtime's own binary out of a container's reach, before the C library starts.
//!
//! A process that enters a container can be made to execute `/proc/self/exe` (as its program, or as the interpreter of a
//! script), and the container can then open that file for writing: the host's runtime (CVE-2019-5736). So the commands
//! that enter containers run from a clone of the binary's mount that is read-only and attached nowhere: nobody can
//! remount it, and a write fails with EROFS. Where mounts may not be cloned, they run from a sealed copy in memory.
//!
//! Re-execution costs the start-up of the C library (some 270 µs in a virtual machine, where CPUID traps) unless it
//! comes before it. Hence an entry point of our own: `tare_start` looks at the arguments, re-executes if needed and goes
//! on to the C library's `_start`. Until then there are no relocations, no thread-local storage and no `memcpy`: the
//! code below makes system calls, compares bytes and nothing else.
//!
//! Source: open_tree(2), mount_setattr(2), execveat(2), memfd_create(2).

#![allow(unsafe_code)] // runs before there is anything safe to stand on

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::mem::MaybeUninit;

// The stack is as execve(2) left it: argc, argv, a null, the environment, a null. rdx is for the C library's `_start`.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl tare_start",
    ".type tare_start, @function",
    "tare_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rbx", // kept by the callee
    "mov %rdx, %r12",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {seal}",
    "mov %rbx, %rsp",
    "mov %r12, %rdx",
    "jmp _start",
    seal = sym seal,
    options(att_syntax)
);

/// Re-executes this program from a place that no container can write to, if it is about to enter one and has not done so.
extern "C" fn seal(stack: *const usize) {
    // SAFETY: argc lies at the top of the stack.
    let count = unsafe { *stack };
    let argv = stack.wrapping_add(1);
    if !enters_a_container(argv, count) {
        return;
    }
    if is_read_only() {
        return;
    }
    let environment = argv.wrapping_add(count + 1);
    execute(read_only_clone(), argv, environment);
    // Only reached where the clone was refused.
    let exe = call(OPEN, [EXE.as_ptr() as usize, O_CLOEXEC, 0, 0, 0]);
    if exe < 0 {
        die(b"tare: opening /proc/self/exe failed: /proc must be mounted\n");
    }
    if call(FCNTL, [exe as usize, F_GET_SEALS, 0, 0, 0]) & SEALS == SEALS {
        call(CLOSE, [exe as usize, 0, 0, 0, 0]);
        return;
    }
    execute(sealed_copy(exe), argv, environment);
    die(b"tare: can neither clone the mount of its own binary nor copy it into memory: a container could overwrite it\n");
}

/// Whether one of the arguments is a verb that enters a container. A container of that name costs a re-execution too.
fn enters_a_container(argv: *const usize, count: usize) -> bool {
    for index in 1..count {
        // SAFETY: argv has `count` pointers to strings that end in a zero byte.
        let word = unsafe { *argv.wrapping_add(index) } as *const u8;
        if is(word, b"run\0") || is(word, b"create\0") || is(word, b"exec\0") || is(word, b"restore\0") {
            return true;
        }
    }
    false
}

/// Compares to the zero byte, which `expected` ends in.
fn is(word: *const u8, expected: &[u8]) -> bool {
    for (index, byte) in expected.iter().enumerate() {
        // SAFETY: every byte before this one equalled a byte that is not zero, so the string goes on to here.
        if unsafe { *word.wrapping_add(index) } != *byte {
            return false;
        }
    }
    true
}

/// This program's own file, wherever it lies.
const EXE: &CStr = c"/proc/self/exe";

/// Whether the mount that this program was started from refuses writes.
fn is_read_only() -> bool {
    let mut answer = MaybeUninit::<[u64; 15]>::uninit(); // struct statfs; f_flags is its eleventh word
    if call(STATFS, [EXE.as_ptr() as usize, answer.as_mut_ptr() as usize, 0, 0, 0]) < 0 {
        return false;
    }
    let flags = answer.as_ptr().cast::<u64>().wrapping_add(10);
    // SAFETY: statfs succeeded and has filled the structure, of which this is a part.
    unsafe { *flags & ST_RDONLY != 0 }
}

/// A clone of the mount that this program's file lies on, of that file alone, read-only and attached nowhere; negative if
/// refused. A copy in memory lies on no mount that could be cloned.
fn read_only_clone() -> isize {
    let clone = call(OPEN_TREE, [AT_FDCWD, EXE.as_ptr() as usize, OPEN_TREE_CLONE | O_CLOEXEC, 0, 0]);
    if clone < 0 {
        return clone;
    }
    let attributes: [u64; 4] = [MOUNT_ATTR_RDONLY, 0, 0, 0]; // struct mount_attr
    let (empty, size) = (c"".as_ptr() as usize, size_of_val(&attributes));
    let set = call(MOUNT_SETATTR, [clone as usize, empty, AT_EMPTY_PATH, (&raw const attributes) as usize, size]);
    if set < 0 { set } else { clone }
}

/// A copy of `exe` in memory that nobody can change any more; negative if refused.
fn sealed_copy(exe: isize) -> isize {
    let name = c"tare".as_ptr() as usize;
    let mut copy = call(MEMFD_CREATE, [name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC, 0, 0, 0]);
    if copy < 0 {
        copy = call(MEMFD_CREATE, [name, MFD_CLOEXEC | MFD_ALLOW_SEALING, 0, 0, 0]); // before Linux 6.3
    }
    if copy < 0 {
        return copy;
    }
    loop {
        match call(SENDFILE, [copy as usize, exe as usize, 0, 1 << 30, 0]) {
            0 => break,
            sent if sent < 0 => return sent,
            _ => {}
        }
    }
    let sealed = call(FCNTL, [copy as usize, F_ADD_SEALS, SEALS as usize, 0, 0]);
    if sealed < 0 { sealed } else { copy }
}

/// Becomes the program that `file` holds; returns only if that was refused, or if there is no file.
fn execute(file: isize, argv: *const usize, environment: *const usize) {
    if file >= 0 {
        let empty = c"".as_ptr() as usize;
        call(EXECVEAT, [file as usize, empty, argv as usize, environment as usize, AT_EMPTY_PATH]);
    }
}

fn die(message: &[u8]) -> ! {
    call(WRITE, [2, message.as_ptr() as usize, message.len(), 0, 0]);
    call(EXIT_GROUP, [1, 0, 0, 0, 0]);
    loop {
        core::hint::spin_loop(); // exit_group does not return
    }
}

const O_CLOEXEC: usize = 0o2_000_000;
const AT_EMPTY_PATH: usize = 0x1000;
const AT_FDCWD: usize = -100isize as usize;
const OPEN_TREE_CLONE: usize = 1;
const MOUNT_ATTR_RDONLY: u64 = 1;
const ST_RDONLY: u64 = 1;
const F_ADD_SEALS: usize = 1033;
const F_GET_SEALS: usize = 1034;
/// F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE.
const SEALS: isize = 0xf;
const MFD_CLOEXEC: usize = 1;
const MFD_ALLOW_SEALING: usize = 2;
const MFD_EXEC: usize = 0x10;

// Numbers of x86_64. Source: asm/unistd_64.h.
const WRITE: usize = 1;
const OPEN: usize = 2;
const CLOSE: usize = 3;
const SENDFILE: usize = 40;
const FCNTL: usize = 72;
const STATFS: usize = 137;
const EXIT_GROUP: usize = 231;
const MEMFD_CREATE: usize = 319;
const EXECVEAT: usize = 322;
const OPEN_TREE: usize = 428;
const MOUNT_SETATTR: usize = 442;

/// A system call; a negative answer is an error number.
#[cfg(target_arch = "x86_64")]
fn call(number: usize, arguments: [usize; 5]) -> isize {
    let answer: isize;
    // SAFETY: callers pass what the call of that number takes, and pointers to what outlives the call. The kernel
    // changes rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => answer,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer
}
