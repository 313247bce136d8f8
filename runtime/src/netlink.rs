//! Requests to the kernel about network devices and their addresses.
//!
//! Source: netlink(7), rtnetlink(7).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
pub const CREATE_NEW: u16 = 0x600;

/// Multiples of four bytes, linux/netlink.h.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// One request, put together from its end to its head.
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// Begins with a message's own fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        Request { kind, flags, body: fixed.to_vec() }
    }

    /// # Errors
    /// `EMSGSIZE` a length takes 16 bits; none is ever cut (CVE-2021-43784).
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Result<Request, Errno> {
        let length = u16::try_from(4 + value.len()).map_err(|_| Errno::MSGSIZE)?;
        self.body.extend(length.to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend(value);
        self.body.resize(aligned(self.body.len()), 0);
        Ok(self)
    }

    fn bytes(&self) -> Vec<u8> {
        let dump = self.flags & DUMP == DUMP;
        let flags = self.flags | REQUEST | if dump { 0 } else { ACK };
        let mut bytes = Vec::with_capacity(16 + self.body.len());
        bytes.extend((16 + self.body.len() as u32).to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]); // a number that nobody asks for, and the kernel as its receiver
        bytes.extend(&self.body);
        bytes
    }
}

/// A way to the kernel's network devices in the namespace that it was made in.
pub struct Socket(OwnedFd);

impl Socket {
    /// # Errors
    /// Those of socket(2).
    pub fn new() -> Result<Socket, Errno> {
        // Protocol 0 is NETLINK_ROUTE.
        Ok(Socket(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// Asks, and gives the body of each answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask(&self, request: &Request) -> Result<Vec<Vec<u8>>, Errno> {
        send(&self.0, &request.bytes(), SendFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            if read(self.0.as_fd(), &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// One datagram's messages. Whether they were the last.
fn read(socket: BorrowedFd<'_>, answers: &mut Vec<Vec<u8>>) -> Result<bool, Errno> {
    let mut buffer = vec![0; 32 << 10]; // what the kernel fills at most for one read of a dump
    let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    let mut rest = &buffer[..length];
    while rest.len() >= 16 {
        let length = number(rest, 0) as usize;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let body = rest.get(16..length).ok_or(Errno::BADMSG)?;
        match kind {
            DONE => return Ok(true),
            ERROR => {
                return match number(body, 0).cast_signed() {
                    0 => Ok(true),
                    negative => Err(Errno::from_raw_os_error(-negative)),
                };
            }
            _ => answers.push(body.to_vec()),
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The 32-bit number at `at`; 0 beyond the end.
pub fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The attributes behind a message's fixed part, which is `fixed` bytes long.
pub fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(aligned(fixed)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]);
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let request = Request::new(0, 0, &[1, 2, 3, 4]).attribute(3, b"eth0\0").unwrap().attribute(4, &[9; 4]).unwrap();
        let found: Vec<_> = attributes(&request.body, 4).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (4, &[9; 4][..])]);
        assert_eq!(request.bytes().len(), 16 + 4 + 12 + 8);
    }

    #[test]
    fn an_attribute_is_never_cut() {
        let large = vec![0; 1 << 16];
        assert_eq!(Request::new(0, 0, &[]).attribute(1, &large).err(), Some(Errno::MSGSIZE));
    }

    #[test]
    fn what_is_cut_short_is_not_read_beyond_its_end() {
        for body in [&[][..], &[8], &[8, 0, 1], &[200, 0, 1, 0, 5], &[0; 4]] {
            assert!(attributes(body, 0).count() <= 1, "{body:?}");
        }
    }
}
