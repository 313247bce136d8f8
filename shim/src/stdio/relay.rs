//! An exec's output, moved on from a pipe to the client's fifo by the kernel.
//!
//! An exec may leave children behind, which would hold the fifo for ever if they had it: the client would never read its
//! end. With a pipe in between the end is ours to give, and is given some time after the exec was deleted. What the runtime
//! says there of an exec that it could not start is in the error, and does not reach the client twice. A container's first
//! process takes the others along, so it gets the fifo itself.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::reactor::{self, Latch};

/// How much is moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Ends when dropped.
pub struct Relay {
    begun: Rc<Latch<()>>,
    /// Nobody has the pipe open any more, and all that was in it has got through.
    drained: Rc<Latch<()>>,
    stopped: Rc<Latch<()>>,
}

impl Relay {
    /// Is ready to move what comes to `fifo`; the second value is the process's end.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn new(fifo: OwnedFd) -> Result<(Relay, OwnedFd), Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        for fd in [&reader, &fifo] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        let latch = || Rc::new(Latch::new());
        let relay = Relay { begun: latch(), drained: latch(), stopped: latch() };
        let (begun, drained, stopped) = (relay.begun.clone(), relay.drained.clone(), relay.stopped.clone());
        reactor::spawn(async move {
            let relayed = async {
                begun.wait().await;
                relay_all(&reader, &fifo).await
            };
            reactor::race(relayed, stopped.wait()).await;
            drop(fifo); // the client reads the end before anyone is told that all got through
            drained.set(());
        });
        Ok((relay, writer))
    }

    pub fn begin(&self) {
        self.begun.set(());
    }

    pub async fn drained(&self) {
        self.drained.wait().await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopped.set(());
    }
}

/// Moves to the end. A client that does not read stalls the process and not us.
async fn relay_all(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    loop {
        reactor::readable(from).await?;
        match splice(from, None, to, None, CHUNK, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => reactor::writable(to).await?,
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe in a fifo's place, neither end of which waits.
    fn fifo() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn a_client_reads_the_end_although_a_child_of_the_exec_holds_its_output() {
        let (client, fifo) = fifo();
        reactor::run(async move {
            let (relay, child) = Relay::new(fifo).unwrap();
            relay.begin();
            rustix::io::write(&child, b"last words").unwrap();
            let mut buffer = [0; 64];
            reactor::readable(&client).await.unwrap();
            assert_eq!(rustix::io::read(&client, &mut buffer).unwrap(), 10);
            assert_eq!(rustix::io::read(&client, &mut buffer), Err(Errno::AGAIN), "the end is not there yet");
            drop(relay);
            reactor::readable(&client).await.unwrap();
            assert_eq!(rustix::io::read(&client, &mut buffer), Ok(0));
            drop(child);
        })
        .unwrap();
    }

    #[test]
    fn what_was_written_before_it_began_is_moved_and_of_what_never_began_nothing_is() {
        for begins in [true, false] {
            let (client, fifo) = fifo();
            let read = reactor::run(async move {
                let (relay, exec) = Relay::new(fifo).unwrap();
                rustix::io::write(&exec, b"early").unwrap();
                drop(exec);
                if begins {
                    relay.begin();
                    relay.drained().await;
                }
                drop(relay);
                reactor::readable(&client).await.unwrap();
                rustix::io::read(&client, &mut [0; 64])
            });
            assert_eq!(read.unwrap(), Ok(if begins { 5 } else { 0 }));
        }
    }

    #[test]
    fn a_client_that_does_not_read_stalls_the_exec_and_loses_nothing() {
        const SIZE: usize = 1 << 20;
        let (client, fifo) = fifo();
        let read = reactor::run(async move {
            let (relay, exec) = Relay::new(fifo).unwrap();
            relay.begin();
            fcntl_setfl(&exec, OFlags::NONBLOCK).unwrap();
            let writing = Rc::new(Latch::new());
            let stalled = writing.clone();
            reactor::spawn(async move {
                let mut left = SIZE;
                while left > 0 {
                    match rustix::io::write(&exec, &vec![7; left]) {
                        Ok(length) => left -= length,
                        Err(_) => {
                            stalled.set(());
                            reactor::writable(&exec).await.unwrap();
                        }
                    }
                }
            });
            writing.wait().await;
            let (mut read, mut buffer) = (0, vec![0; 4096]);
            loop {
                reactor::readable(&client).await.unwrap();
                match rustix::io::read(&client, &mut buffer).unwrap() {
                    0 => break,
                    length => read += length,
                }
            }
            relay.drained().await;
            read
        });
        assert_eq!(read.unwrap(), SIZE);
    }
}
