//! The archive's bytes, hashed, counted and bounded on their way.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::LARGEST;
use crate::names::Digest;

pub struct Meter<R> {
    stream: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> Meter<R> {
    pub fn new(stream: R) -> Meter<R> {
        Meter { stream, hash: Sha256::new(), size: 0 }
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
        Ok(length)
    }
}
