//! Where the C library comes to us.
//!
//! Rust's own `main` first reads `/proc/self/maps` to find the guard page of its stack, and makes a second stack to report
//! an overflow on: a fifteenth of the time that a container takes to start, for a message that no caller reads. Two things
//! that it does are kept: no file of ours may come to be descriptor 0, 1 or 2, and a reader that went away is an error,
//! not a signal.
//!
//! Source: Rust's library/std/src/rt.rs and sys/pal/unix/mod.rs.

#![allow(unsafe_code)] // below what Rust does for a program before it begins

use std::ffi::{c_char, c_int};

#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    for descriptor in 0..3 {
        // SAFETY: asks about a number, open or not.
        let closed = unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1;
        // The lowest free number is this one, since those below are open.
        // SAFETY: a path that ends in a zero byte.
        if closed && unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != descriptor {
            // SAFETY: ends the process; nothing was begun.
            unsafe { libc::_exit(1) };
        }
    }
    // SAFETY: no handler of ours, and no other thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    crate::run()
}
