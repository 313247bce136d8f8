//! The program's memory: handed out one piece after the other, and hardly ever taken back.
//!
//! A command lives for milliseconds and keeps some 90 KiB; looking for free pieces that it will never need takes time that
//! a start notices, and so do the pages that pieces of all sizes are spread over. Only the piece that was handed out last is
//! taken back or grows in place: that is what a loop does again and again, so that a command that stays (`run`, `events`)
//! does not use the space up. What no longer fits comes from the C library.

#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 256 << 10;
const PAGE: usize = 4 << 10;

/// A space and what is left of it.
#[repr(C, align(4096))]
pub struct Memory {
    space: UnsafeCell<[u8; SIZE]>,
    /// Where the piece after the last one begins.
    next: AtomicUsize,
}

// SAFETY: threads share no piece of the space, as `next` sees to.
unsafe impl Sync for Memory {}

impl Memory {
    #[allow(clippy::new_without_default)] // for a static
    pub const fn new() -> Memory {
        Memory { space: UnsafeCell::new([0; SIZE]), next: AtomicUsize::new(0) }
    }

    /// Takes the piece from `next` to `end`, unless another thread was faster or it does not fit.
    fn take(&self, next: usize, end: usize) -> bool {
        end <= SIZE && self.next.compare_exchange(next, end, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Where in the space a piece lies, if it does.
    fn place(&self, pointer: *mut u8) -> Option<usize> {
        pointer.addr().checked_sub(self.space.get().addr()).filter(|place| *place < SIZE)
    }
}

// SAFETY: pieces of the space do not overlap, since `next` only grows past a piece by whoever takes it, and goes back only
// over the last piece by its owner; all others are the system allocator's.
unsafe impl GlobalAlloc for Memory {
    #[inline(never)] // there are thousands of calls
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            let next = self.next.load(Ordering::Relaxed);
            let start = next.next_multiple_of(layout.align()); // the space is aligned to a page
            let end = start.saturating_add(layout.size());
            if end > SIZE || layout.align() > PAGE {
                // SAFETY: the caller's promises are the system allocator's conditions.
                return unsafe { System.alloc(layout) };
            }
            if self.take(next, end) {
                return self.space.get().cast::<u8>().wrapping_add(start);
            }
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.place(pointer) {
            // SAFETY: not of the space, so it is the system allocator's.
            None => unsafe { System.dealloc(pointer, layout) },
            Some(start) => {
                self.take(start + layout.size(), start); // only if it is the last piece
            }
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = self.place(pointer) else {
            // SAFETY: not of the space, so it is the system allocator's.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        let end = start + layout.size();
        if size <= layout.size() || self.take(end, start.saturating_add(size)) {
            return pointer;
        }
        // SAFETY: the caller promises that the new size is not zero and does not overflow with this alignment.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as above.
        let moved = unsafe { self.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both pieces have at least as many bytes, and a new piece does not overlap an old one.
            unsafe { pointer.copy_to_nonoverlapping(moved, layout.size()) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    fn alloc(memory: &Memory, layout: Layout) -> *mut u8 {
        // SAFETY: the tests ask for more than nothing.
        unsafe { memory.alloc(layout) }
    }

    #[test]
    fn pieces_lie_one_behind_the_other_as_they_are_aligned() {
        static MEMORY: Memory = Memory::new();
        let first = alloc(&MEMORY, bytes(3));
        let second = alloc(&MEMORY, Layout::from_size_align(5, 64).unwrap());
        assert_eq!((first.addr() % PAGE, second.addr() - first.addr()), (0, 64));
    }

    #[test]
    fn the_last_piece_grows_in_place_and_is_taken_back_and_others_are_copied() {
        static MEMORY: Memory = Memory::new();
        let first = alloc(&MEMORY, bytes(8));
        // SAFETY: a piece of eight bytes.
        unsafe { first.copy_from(b"contents".as_ptr(), 8) };
        // SAFETY: it was handed out with this layout.
        assert_eq!(unsafe { MEMORY.realloc(first, bytes(8), 64) }, first);
        let last = alloc(&MEMORY, bytes(8));
        // SAFETY: as above, as it grew.
        let moved = unsafe { MEMORY.realloc(first, bytes(64), 128) };
        assert!(moved.addr() > last.addr());
        // SAFETY: it has at least eight bytes, which were copied.
        assert_eq!(unsafe { std::slice::from_raw_parts(moved, 8) }, b"contents");
        // SAFETY: it was handed out with this layout.
        unsafe { MEMORY.dealloc(moved, bytes(128)) };
        assert_eq!(alloc(&MEMORY, bytes(16)), moved);
    }

    #[test]
    fn what_does_not_fit_comes_from_elsewhere_and_goes_back_there() {
        static MEMORY: Memory = Memory::new();
        let large = alloc(&MEMORY, bytes(SIZE + 1));
        assert!(!large.is_null() && MEMORY.place(large).is_none());
        // SAFETY: it was handed out with this layout.
        let larger = unsafe { MEMORY.realloc(large, bytes(SIZE + 1), 2 * SIZE) };
        // SAFETY: as above.
        unsafe { MEMORY.dealloc(larger, bytes(2 * SIZE)) };
        assert_eq!(MEMORY.place(alloc(&MEMORY, bytes(SIZE))), Some(0));
    }
}
