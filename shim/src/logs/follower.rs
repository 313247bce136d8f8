//! One who follows output: a fifo, and a ring for what it does not take at once.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, write};

/// More than this is not kept for one who does not read: the oldest is dropped.
const LONGEST: usize = 256 << 10;

pub struct Follower {
    /// Of which of the two outputs.
    pub of: usize,
    /// Does not block.
    pub fifo: OwnedFd,
    ring: VecDeque<u8>,
}

/// Nobody reads any more.
pub struct Gone;

impl Follower {
    pub fn new(of: usize, fifo: OwnedFd) -> Follower {
        Follower { of, fifo, ring: VecDeque::new() }
    }

    pub fn is_behind(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Writes what goes at once, and keeps the rest.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        if self.ring.is_empty() {
            bytes = &bytes[some(&self.fifo, bytes)?..];
        }
        let bytes = &bytes[bytes.len().saturating_sub(LONGEST)..];
        let surplus = (self.ring.len() + bytes.len()).saturating_sub(LONGEST);
        self.ring.drain(..surplus);
        self.ring.extend(bytes);
        Ok(())
    }

    /// Writes of what was kept, now that there is room.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while !self.ring.is_empty() {
            match some(&self.fifo, self.ring.as_slices().0)? {
                0 => return Ok(()),
                length => drop(self.ring.drain(..length)),
            }
        }
        self.ring = VecDeque::new();
        Ok(())
    }
}

/// How much could be written without waiting.
fn some(fifo: &OwnedFd, bytes: &[u8]) -> Result<usize, Gone> {
    match write(fifo, bytes) {
        Ok(length) => Ok(length),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(_) => Err(Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn everything(reader: &OwnedFd) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = rustix::io::read(reader, &mut buffer) {
            all.extend_from_slice(&buffer[..length]);
        }
        all
    }

    #[test]
    fn who_does_not_read_gets_the_newest_and_costs_no_more_than_the_ring() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut follower = Follower::new(0, writer);
        let output: Vec<u8> = (0..2_000_000u32).map(|number| (number % 251) as u8).collect();
        for piece in output.chunks(10_000) {
            assert!(follower.push(piece).is_ok());
            assert!(follower.ring.len() <= LONGEST);
        }
        let mut got = everything(&reader);
        assert!(output.starts_with(&got));
        while follower.is_behind() {
            assert!(follower.flush().is_ok());
            got = everything(&reader);
        }
        assert!(output.ends_with(&got));
        drop(reader);
        assert!(follower.push(b"more").is_err());
    }
}
