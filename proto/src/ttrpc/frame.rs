//! Frames: ten bytes of header, then data.

/// More data than this is refused, and passed over.
pub const LONGEST: usize = 4 << 20;
const HEADER: usize = 10;

/// What a frame is; other kinds are for streams or later versions.
pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub stream: u32,
    pub kind: u8,
    pub flags: u8,
    pub data: Vec<u8>,
}

/// A frame that announced more than [`LONGEST`]. Its data is passed over, the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    pub stream: u32,
    pub length: u32,
}

/// Puts a frame together.
pub fn encode(stream: u32, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + data.len());
    frame.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, 0]);
    frame.extend(data);
    frame
}

/// Takes frames out of bytes as they arrive. Holds at most one frame's data.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How much of a frame that was too long is still to come.
    passed_over: usize,
}

impl Decoder {
    /// Takes in what was read from the peer.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let skip = self.passed_over.min(bytes.len());
        self.passed_over -= skip;
        bytes = &bytes[skip..];
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is whole.
    pub fn take(&mut self) -> Option<Result<Frame, TooLong>> {
        let header: &[u8; HEADER] = self.bytes.first_chunk()?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        let (length, stream) = (u32::from_be_bytes([l0, l1, l2, l3]), u32::from_be_bytes([s0, s1, s2, s3]));
        let size = length as usize;
        if size > LONGEST {
            let there = (self.bytes.len() - HEADER).min(size);
            self.bytes.drain(..HEADER + there);
            self.passed_over = size - there;
            return Some(Err(TooLong { stream, length }));
        }
        if self.bytes.len() < HEADER + size {
            return None;
        }
        let data = self.bytes[HEADER..HEADER + size].to_vec();
        self.bytes.drain(..HEADER + size);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(4096);
        }
        Some(Ok(Frame { stream, kind, flags, data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_are_cut() {
        let mut bytes = encode(1, REQUEST, b"hello");
        bytes.extend(encode(3, RESPONSE, b""));
        for cut in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.take() {
                    frames.push(frame.unwrap());
                }
            }
            assert_eq!(frames[0], Frame { stream: 1, kind: REQUEST, flags: 0, data: b"hello".to_vec() });
            assert_eq!(frames[1], Frame { stream: 3, kind: RESPONSE, flags: 0, data: Vec::new() });
            assert_eq!(frames.len(), 2);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_passed_over_without_keeping_it() {
        let mut decoder = Decoder::default();
        let length = u32::try_from(LONGEST + 1).unwrap();
        let mut header = length.to_be_bytes().to_vec();
        header.extend([0, 0, 0, 5, REQUEST, 0]);
        decoder.push(&header);
        assert_eq!(decoder.take(), Some(Err(TooLong { stream: 5, length })));
        for _ in 0..(LONGEST + 1) / 1024 {
            decoder.push(&[0; 1024]);
            assert!(decoder.bytes.is_empty());
        }
        decoder.push(&[0; 1]);
        decoder.push(&encode(7, REQUEST, b"next"));
        assert_eq!(decoder.take().unwrap().unwrap().stream, 7);
    }
}
