//! The archive's bytes, hashed, counted and bounded on their way.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::LARGEST;
use crate::names::Digest;

/// How many bytes may be read before somebody says more. A reader of archives keeps what describes an entry in memory,
/// and believes the size that the archive claims for it.
#[derive(Clone)]
pub struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    pub fn only(&self, bytes: u64) {
        self.0.set(bytes);
    }

    pub fn unlimited(&self) {
        self.0.set(u64::MAX);
    }
}

pub struct Meter<R> {
    stream: R,
    hash: Sha256,
    size: u64,
    allowance: Allowance,
}

impl<R: Read> Meter<R> {
    pub fn new(stream: R) -> Meter<R> {
        Meter { stream, hash: Sha256::new(), size: 0, allowance: Allowance(Rc::new(Cell::new(u64::MAX))) }
    }

    pub fn allowance(&self) -> Allowance {
        self.allowance.clone()
    }

    /// Digest and number of all that was read.
    pub fn end(self) -> (Digest, u64) {
        (Digest::of_hash(&self.hash.finalize()), self.size)
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.size += length as u64;
        if self.size > LARGEST {
            return Err(io::Error::other(format!("it unpacks to more than {} GiB", LARGEST >> 30)));
        }
        let left = self.allowance.0.get();
        if left != u64::MAX {
            let left =
                left.checked_sub(length as u64).ok_or_else(|| io::Error::other("an entry's header is too long"))?;
            self.allowance.0.set(left);
        }
        Ok(length)
    }
}
