//! A second thread for one errand: a few system calls, beside what the first thread does meanwhile.
//!
//! It is the kernel's thread and not the C library's: that one would have memory mapped for its stack and its variables,
//! which takes longer than it saves. So it has no variables of its own, not even `errno`: its work makes bare system calls,
//! allocates nothing and cannot panic.
//!
//! Source: clone(2), `CLONE_THREAD`, `CLONE_CHILD_CLEARTID`; futex(2).

#![allow(unsafe_code)] // a thread below the C library

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::thread::futex;

/// What the errand is: it brings a descriptor.
pub type Work = fn() -> Result<OwnedFd, Errno>;

/// On its way. There is one at most, ever.
pub struct Errand(());

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the one thread uses it.
unsafe impl Sync for Stack {}

const STACK: usize = 16 << 10;
static SPACE: Stack = Stack(UnsafeCell::new([0; STACK]));
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Becomes 0, by the kernel's hand, when the thread has ended.
static RUNS: AtomicU32 = AtomicU32::new(1);
/// A descriptor, or an error number below 0.
static ANSWER: AtomicI32 = AtomicI32::new(0);

impl Errand {
    /// Sets out; none if there was one before, or no thread is to be had.
    pub fn begin(work: Work) -> Option<Errand> {
        if TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_CHILD_CLEARTID;
        let top = SPACE.0.get().cast::<u8>().wrapping_add(STACK).cast::<c_void>();
        let (work, none) = (work as *mut c_void, std::ptr::null_mut::<c_void>());
        // SAFETY: the stack is nobody else's and never goes away, as do the variables; `entry` takes what is passed.
        let thread = unsafe { libc::clone(entry, top, flags, work, none, none, RUNS.as_ptr()) };
        (thread > 0).then_some(Errand(()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The work's.
    pub fn finish(self) -> Result<OwnedFd, Errno> {
        while RUNS.load(Ordering::Acquire) != 0 {
            let _ = futex::wait(&RUNS, futex::Flags::empty(), 1, None); // asked again, whyever it came back
        }
        match ANSWER.load(Ordering::Relaxed) {
            // SAFETY: the work gave it away, and nobody has taken it yet, since there is one errand.
            descriptor @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            errno => Err(Errno::from_raw_os_error(-errno)),
        }
    }
}

extern "C" fn entry(work: *mut c_void) -> c_int {
    // SAFETY: `begin` passed a function of this type.
    let work = unsafe { std::mem::transmute::<*mut c_void, Work>(work) };
    let answer = work().map_or_else(|errno| -errno.raw_os_error(), |descriptor| descriptor.into_raw_fd());
    ANSWER.store(answer, Ordering::Relaxed);
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who_is_here() -> Result<OwnedFd, Errno> {
        let file = rustix::fs::memfd_create("errand", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::io::pwrite(&file, &rustix::thread::gettid().as_raw_nonzero().get().to_ne_bytes(), 0)?;
        Ok(file)
    }

    /// One test, since there is one errand in a process.
    #[test]
    fn an_errand_is_done_by_another_thread_and_once() {
        let errand = Errand::begin(who_is_here).unwrap();
        assert!(Errand::begin(who_is_here).is_none(), "one is on its way");
        let (file, mut thread) = (errand.finish().unwrap(), [0; 4]);
        assert_eq!(rustix::io::pread(&file, &mut thread, 0).unwrap(), thread.len());
        let thread = i32::from_ne_bytes(thread);
        assert!(thread > 0 && thread != rustix::thread::gettid().as_raw_nonzero().get(), "{thread}");
        assert!(Errand::begin(who_is_here).is_none(), "there was one");
    }
}
