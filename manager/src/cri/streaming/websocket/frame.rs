//! Frames, and the messages they make.
//!
//! Source: RFC 6455, section 5.

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A message of more bytes is refused: clients copy in pieces of 32 KiB.
pub const LONGEST: usize = 4 << 20;

const FIN: u8 = 0x80;
const MASK: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Kind {
    fn of(opcode: u8) -> Option<Kind> {
        Some(match opcode {
            1 => Kind::Text,
            2 => Kind::Binary,
            8 => Kind::Close,
            9 => Kind::Ping,
            10 => Kind::Pong,
            _ => return None,
        })
    }

    fn opcode(self) -> u8 {
        match self {
            Kind::Text => 1,
            Kind::Binary => 2,
            Kind::Close => 8,
            Kind::Ping => 9,
            Kind::Pong => 10,
        }
    }

    fn is_control(self) -> bool {
        self.opcode() >= 8
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// The client breaks the protocol: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

impl Message {
    /// As one frame, from the server.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![FIN | self.kind.opcode()];
        match self.bytes.len() {
            short @ 0..126 => frame.push(short as u8),
            middle @ 126..0x1_0000 => {
                frame.push(126);
                frame.extend((middle as u16).to_be_bytes());
            }
            long => {
                frame.push(127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(&self.bytes);
        frame
    }
}

/// Reads a client's messages, putting frames together.
pub struct Messages<R> {
    from: R,
    /// What came of a message whose last frame did not.
    begun: Option<Message>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub fn new(from: R) -> Messages<R> {
        Messages { from, begun: None }
    }

    /// The next message; none when the connection has ended.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn next(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            let mut head = [0; 2];
            if self.from.read_exact(&mut head).await.is_err() {
                return Ok(None);
            }
            let (fin, opcode) = (head[0] & FIN != 0, head[0] & 0x0f);
            if head[0] & 0x70 != 0 || head[1] & MASK == 0 {
                return Err(Broken("a frame with extensions, or not masked"));
            }
            let length = self.length(head[1] & 0x7f).await?;
            let kind = Kind::of(opcode);
            if kind.is_some_and(Kind::is_control) && (!fin || length > 125) {
                return Err(Broken("a control frame is in pieces or too long"));
            }
            let so_far = self.begun.as_ref().map_or(0, |begun| begun.bytes.len());
            if length.saturating_add(so_far) > LONGEST {
                return Err(Broken("a message is too long"));
            }
            let bytes = self.body(length).await?;
            let message = match (kind, self.begun.take()) {
                (Some(kind), begun) if kind.is_control() => {
                    self.begun = begun; // it may come between the pieces of another message
                    return Ok(Some(Message { kind, bytes }));
                }
                (Some(kind), None) => Message { kind, bytes },
                (None, Some(mut begun)) if opcode == 0 => {
                    begun.bytes.extend(bytes);
                    begun
                }
                _ => return Err(Broken("a frame that does not belong here")),
            };
            if fin {
                return Ok(Some(message));
            }
            self.begun = Some(message);
        }
    }

    async fn length(&mut self, short: u8) -> Result<usize, Broken> {
        let cut = |_| Broken("a frame is cut off");
        match short {
            126 => Ok(self.from.read_u16().await.map_err(cut)?.into()),
            127 => {
                usize::try_from(self.from.read_u64().await.map_err(cut)?).map_err(|_| Broken("a message is too long"))
            }
            short => Ok(short.into()),
        }
    }

    async fn body(&mut self, length: usize) -> Result<Vec<u8>, Broken> {
        let mut mask = [0; 4];
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut mask).await.map_err(|_| Broken("a frame is cut off"))?;
        self.from.read_exact(&mut bytes).await.map_err(|_| Broken("a frame is cut off"))?;
        bytes.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Vec<Message>, Broken> {
        let mut messages = Messages::new(bytes);
        let mut all = Vec::new();
        while let Some(message) = messages.next().await? {
            all.push(message);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn pieces_make_a_message_and_pings_come_between() {
        // Masked with zeroes, then RFC 6455's own example of "Hello" (5.7).
        let bytes = [
            &[0x02, 0x81, 0, 0, 0, 0, b'a'][..],
            &[0x89, 0x80, 0, 0, 0, 0],
            &[0x80, 0x82, 0, 0, 0, 0, b'b', b'c'],
            &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58],
        ]
        .concat();
        let expect = [(Kind::Ping, &b""[..]), (Kind::Binary, b"abc"), (Kind::Text, b"Hello")];
        let expect: Vec<_> = expect.map(|(kind, bytes)| Message { kind, bytes: bytes.to_vec() }).into();
        assert_eq!(read(&bytes).await.unwrap(), expect);
    }

    #[tokio::test]
    async fn what_the_protocol_forbids_ends_the_connection() {
        for bad in [
            &[0x82, 0x01, b'a'][..],                                       // not masked
            &[0xc2, 0x80, 0, 0, 0, 0],                                     // an extension
            &[0x80, 0x80, 0, 0, 0, 0],                                     // goes on with nothing
            &[0x09, 0x80, 0, 0, 0, 0],                                     // a ping in pieces
            &[0x83, 0x80, 0, 0, 0, 0],                                     // no such kind
            &[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // longer than memory
            &[0x82, 0x85, 0, 0, 0, 0, b'a'],                               // cut off
            &[0x02, 0x80, 0, 0, 0, 0, 0x02, 0x80, 0, 0, 0, 0],             // a message in a message
        ] {
            assert!(read(bad).await.is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn lengths_are_written_in_the_shortest_form() {
        for (length, head) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65535, vec![0x82, 126, 0xff, 0xff]),
            (65536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let frame = Message { kind: Kind::Binary, bytes: vec![7; length] }.frame();
            assert_eq!(frame[..head.len()], head, "{length}");
            assert_eq!(frame.len(), head.len() + length);
        }
    }
}
