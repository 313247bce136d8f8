//! Frames: eight bytes that say what follows, and what follows.
//!
//! Source: SPDY Protocol, draft 3.1, section 2.2 and 2.6.

use super::Broken;
use super::header::{Deflater, Headers, Inflater};

/// A control frame of more bytes is none that a client here has reason to send. Data may be as long as it can say.
pub const LONGEST_CONTROL: usize = 64 << 10;
/// Of data that we send, as Go's clients copy.
pub const PIECE: usize = 32 << 10;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, length: usize },
    Control { kind: u16, flags: u8, length: usize },
}

impl Head {
    pub const LENGTH: usize = 8;

    /// # Errors
    /// [`Broken`]: another version, or a control frame that is too long.
    pub fn parse(bytes: [u8; Head::LENGTH]) -> Result<Head, Broken> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if a & 0x80 == 0 {
            return Ok(Head::Data { stream: u32::from_be_bytes([a, b, c, d]), fin: flags & FIN != 0, length });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(Broken("a frame of another version"));
        }
        if length > LONGEST_CONTROL {
            return Err(Broken("a control frame is too long"));
        }
        Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame, as far as a server without windows and priorities needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    Open {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, further headers, windows: nobody who speaks to kubelets depends on them.
    Other,
}

impl Control {
    /// # Errors
    /// [`Broken`]: it is cut off, or its headers are broken.
    pub fn read(kind: u16, flags: u8, body: &[u8], inflater: &mut Inflater) -> Result<Control, Broken> {
        const HEADERS: u16 = 8;
        let number = |at: usize| {
            let bytes = body.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Broken("a frame is cut off"))?;
            Ok(u32::from_be_bytes(*bytes) & 0x7fff_ffff)
        };
        let block = |at: usize| body.get(at..).ok_or(Broken("a frame is cut off"));
        Ok(match kind {
            SYN_STREAM => Control::Open {
                stream: number(0)?,
                headers: inflater.read(block(10)?)?, // behind the associated stream, priority and slot
                fin: flags & FIN != 0,
            },
            SYN_REPLY | HEADERS => {
                inflater.read(block(4)?)?; // or the next block could not be read
                Control::Other
            }
            RST_STREAM => Control::Reset { stream: number(0)? },
            PING => Control::Ping { id: number(0)? },
            GOAWAY => Control::GoAway,
            _ => Control::Other,
        })
    }
}

/// What we send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Reply { stream: u32 },
    Data { stream: u32, bytes: Vec<u8>, fin: bool },
    Refuse { stream: u32 },
    Ping { id: u32 },
    GoAway,
}

impl Answer {
    /// # Errors
    /// [`Broken`]: the compressor fails.
    pub fn bytes(&self, deflater: &mut Deflater) -> Result<Vec<u8>, Broken> {
        const REFUSED_STREAM: u32 = 3;
        Ok(match self {
            Answer::Reply { stream } => control(SYN_REPLY, &[&stream.to_be_bytes(), &deflater.write(&[])?]),
            Answer::Refuse { stream } => control(RST_STREAM, &[&stream.to_be_bytes(), &REFUSED_STREAM.to_be_bytes()]),
            Answer::Ping { id } => control(PING, &[&id.to_be_bytes()]),
            Answer::GoAway => control(GOAWAY, &[&[0; 8]]),
            Answer::Data { stream, bytes, fin } => {
                let mut frame = stream.to_be_bytes().to_vec();
                frame.push(u8::from(*fin));
                frame.extend(&(bytes.len() as u32).to_be_bytes()[1..]); // at most a piece
                frame.extend(bytes);
                frame
            }
        })
    }
}

fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = (VERSION | 0x8000).to_be_bytes().to_vec();
    frame.extend(kind.to_be_bytes());
    frame.extend((length as u32).to_be_bytes()); // the flags are the first byte of the four
    parts.iter().for_each(|part| frame.extend(*part));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Control, Broken> {
        let (head, body) = bytes.split_first_chunk().unwrap();
        match Head::parse(*head)? {
            Head::Control { kind, flags, length } => {
                Control::read(kind, flags, &body[..length], &mut Inflater::default())
            }
            Head::Data { .. } => panic!("a control frame"),
        }
    }

    #[test]
    fn frames_are_laid_out_as_the_draft_draws_them() {
        let deflater = &mut Deflater::new().unwrap();
        let data = Answer::Data { stream: 5, bytes: b"hi".to_vec(), fin: true }.bytes(deflater).unwrap();
        assert_eq!(data, [0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i']);
        let head = Head::parse(*data.first_chunk().unwrap()).unwrap();
        assert_eq!(head, Head::Data { stream: 5, fin: true, length: 2 });
        assert_eq!(Answer::Ping { id: 7 }.bytes(deflater).unwrap(), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(read(&Answer::Ping { id: 7 }.bytes(deflater).unwrap()).unwrap(), Control::Ping { id: 7 });
        assert_eq!(read(&Answer::Refuse { stream: 9 }.bytes(deflater).unwrap()).unwrap(), Control::Reset { stream: 9 });
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_refused() {
        assert!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err());
        assert!(Head::parse([0x80, 3, 0, 1, 0, 1, 0, 1]).is_err());
        for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, PING] {
            assert!(Control::read(kind, 0, &[0, 0], &mut Inflater::default()).is_err(), "{kind}");
        }
    }
}
