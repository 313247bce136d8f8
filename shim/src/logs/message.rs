//! What shim and writer say to each other, over sockets that keep messages apart (`SOCK_SEQPACKET`).

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::place::Place;
use crate::reactor;

/// From the shim, with descriptors.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// A new log: its own socket, then the reading ends of output and, if so, error.
    Open { place: Place, with_error: bool },
    /// On a log's own socket: the file was renamed.
    Reopen,
    /// On a log's own socket: fifos to copy to.
    Follow { output: bool, error: bool },
}

/// From the writer, on a log's own socket: one for each order, in order; and the last.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Done(Result<(), Errno>),
    /// All that was written has got through.
    Ended,
}

impl Order {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Order::Open { place, with_error } => {
                let mut bytes = vec![b'o', u8::from(*with_error)];
                bytes.extend(place.max_line.to_ne_bytes());
                bytes.extend(place.path.as_os_str().as_bytes());
                bytes
            }
            Order::Reopen => vec![b'r'],
            Order::Follow { output, error } => vec![b'f', u8::from(*output), u8::from(*error)],
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Order> {
        Some(match bytes {
            [b'o', with_error, a, b, c, d, path @ ..] => {
                let path = OsString::from_vec(path.to_vec()).into();
                let place = Place { path, max_line: u32::from_ne_bytes([*a, *b, *c, *d]) };
                Order::Open { place, with_error: *with_error == 1 }
            }
            [b'r'] => Order::Reopen,
            [b'f', output, error] => Order::Follow { output: *output == 1, error: *error == 1 },
            _ => return None,
        })
    }
}

impl Answer {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Done(result) => {
                let number = result.err().map_or(0, Errno::raw_os_error);
                [&[b'd'][..], &number.to_ne_bytes()].concat()
            }
            Answer::Ended => vec![b'e'],
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Answer> {
        Some(match bytes {
            [b'd', a, b, c, d] => Answer::Done(match i32::from_ne_bytes([*a, *b, *c, *d]) {
                0 => Ok(()),
                number => Err(Errno::from_raw_os_error(number)),
            }),
            [b'e'] => Answer::Ended,
            _ => return None,
        })
    }
}

/// A message's bytes and descriptors.
pub type Received = (Vec<u8>, Vec<OwnedFd>);

/// A path may have 4096 bytes: path_resolution(7).
const LONGEST: usize = 4096 + 16;
const MOST_FDS: usize = 3;

/// # Errors
/// The other side is gone, or has not taken what was sent before.
pub fn send(socket: &impl AsFd, bytes: &[u8], fds: &[&OwnedFd]) -> Result<(), Errno> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// The next message and its descriptors; none when the other side is gone.
///
/// # Errors
/// `EAGAIN` there is none yet, if the socket does not block.
pub fn receive(socket: &impl AsFd) -> Result<Option<Received>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; LONGEST];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    Ok(Some((bytes, fds.collect())))
}

/// As [`receive`], for the event loop.
///
/// # Errors
/// The socket cannot be waited for.
pub async fn receive_when_ready(socket: &impl AsFd) -> Result<Option<Received>, Errno> {
    loop {
        reactor::readable(socket).await?;
        match receive(socket) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let place = Place { path: "/var/log/ä/0.log".into(), max_line: 7 };
        for order in
            [Order::Open { place, with_error: true }, Order::Reopen, Order::Follow { output: true, error: false }]
        {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        for answer in [Answer::Done(Ok(())), Answer::Done(Err(Errno::NOSPC)), Answer::Ended] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        assert_eq!(Order::decode(b"x"), None);
    }
}
