//! Waiting for a descriptor.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::{Loop, current};

/// Returns when reading would not wait: there is something to read, or the end was reached.
///
/// # Errors
/// The descriptor is already waited for in this direction, or there are too many.
pub async fn readable(fd: &impl AsFd) -> Result<(), Errno> {
    Ready { fd: fd.as_fd(), flags: EventFlags::IN, token: None }.await
}

/// Returns when writing would not wait.
///
/// # Errors
/// As [`readable`].
pub async fn writable(fd: &impl AsFd) -> Result<(), Errno> {
    Ready { fd: fd.as_fd(), flags: EventFlags::OUT, token: None }.await
}

/// Returns when a kernel file that was read has changed since.
///
/// # Errors
/// As [`readable`].
pub async fn exceptional(fd: &impl AsFd) -> Result<(), Errno> {
    Ready { fd: fd.as_fd(), flags: EventFlags::PRI, token: None }.await
}

/// Writes all of it to a descriptor that does not block.
///
/// # Errors
/// The other side is gone.
pub async fn write_all(fd: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::AGAIN) => writable(fd).await?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

struct Ready<'a> {
    fd: BorrowedFd<'a>,
    flags: EventFlags,
    token: Option<u64>,
}

impl Ready<'_> {
    fn epoll<'a>(&self, this: &'a Loop) -> &'a OwnedFd {
        if self.flags == EventFlags::OUT { &this.writing } else { &this.epoll }
    }
}

impl Future for Ready<'_> {
    type Output = Result<(), Errno>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = current();
        if let Some(token) = self.token {
            // The loop takes the waker out when it fires.
            let mut watched = this.watched.borrow_mut();
            let Some(waker) = watched.get_mut(&token) else { return Poll::Ready(Ok(())) };
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let token = this.number();
        let flags = self.flags | EventFlags::ONESHOT;
        match epoll::add(self.epoll(&this), self.fd, EventData::new_u64(token), flags) {
            // epoll(7): a regular file, and /dev/null, are always ready.
            Err(Errno::PERM) => return Poll::Ready(Ok(())),
            other => other?,
        }
        this.watched.borrow_mut().insert(token, context.waker().clone());
        self.token = Some(token);
        Poll::Pending
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            let this = current();
            this.watched.borrow_mut().remove(&token);
            // It was added and is still open, since we borrow it.
            let _ = epoll::delete(self.epoll(&this), self.fd);
        }
    }
}
