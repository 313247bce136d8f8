//! How the daemon holds memory: what requests of many threads needed for a moment goes back to the system.

#![allow(unsafe_code)] // mallopt(3) has no safe face

/// Heaps of the C library at once. By default each of a pull's threads may fill one of its own.
const HEAPS: libc::c_int = 2;
/// What is as large as this is a mapping of its own, and gone when it is freed; free memory at a heap's end is kept up to it.
/// Said once, it does not grow by itself with what was freed.
const LARGE: libc::c_int = 256 << 10;

/// To be called before there is a second thread.
pub fn settle() {
    for (what, value) in [(libc::M_ARENA_MAX, HEAPS), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: mallopt reads two numbers; no other thread allocates yet.
        if unsafe { libc::mallopt(what, value) } != 1 {
            tracing::warn!("mallopt({what}, {value}) is not understood: more memory than necessary is held");
        }
    }
}
