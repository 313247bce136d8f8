//! Header blocks: names and values behind their lengths, compressed against everything that the connection has carried.
//!
//! Source: SPDY Protocol, draft 3.1, section 2.6.10.

use std::collections::HashMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Broken;
use super::dictionary::dictionary;

/// Names are in lower case.
pub type Headers = HashMap<String, String>;

/// A block of more bytes, decompressed, is refused: a stream's headers are three short lines (CVE-2026-35469).
const LONGEST: usize = 16 << 10;

pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater(Decompress::new(true))
    }
}

impl Inflater {
    /// # Errors
    /// [`Broken`]: not such a block; the connection cannot go on.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Broken> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Broken> {
        let (mut out, mut at, mut piece) = (Vec::new(), 0, [0; 4096]);
        loop {
            let before = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress(&block[at..], &mut piece, FlushDecompress::Sync);
            let taken = (self.0.total_in() - before.0) as usize; // at most a block's length
            let made = (self.0.total_out() - before.1) as usize;
            at += taken;
            out.extend_from_slice(&piece[..made]);
            if out.len() > LONGEST {
                return Err(Broken("a header block is too long"));
            }
            match status {
                Ok(Status::StreamEnd) => return Err(Broken("the header stream ended")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| Broken("a header block has another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Broken("a header block cannot be decompressed")),
            }
            if at == block.len() && made < piece.len() {
                return Ok(out);
            }
            if taken == 0 && made == 0 {
                return Err(Broken("a header block cannot be decompressed"));
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, Broken> {
    let mut rest = block;
    let count = number(&mut rest)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?;
        let value = text(&mut rest)?;
        if name.is_empty() || headers.insert(name.to_ascii_lowercase(), value).is_some() {
            return Err(Broken("a header is nameless or comes twice"));
        }
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<u32, Broken> {
    let (number, after) = rest.split_first_chunk().ok_or(Broken("a header block is cut off"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn text(rest: &mut &[u8]) -> Result<String, Broken> {
    let length = usize::try_from(number(rest)?).map_err(|_| Broken("a header is too long"))?;
    let (text, after) = rest.split_at_checked(length).ok_or(Broken("a header block is cut off"))?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| Broken("a header is not text"))
}

pub struct Deflater(Compress);

impl Deflater {
    /// # Errors
    /// [`Broken`]: the dictionary is refused.
    pub fn new() -> Result<Deflater, Broken> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).map_err(|_| Broken("the dictionary is refused"))?;
        Ok(Deflater(compress))
    }

    /// # Errors
    /// [`Broken`]: the compressor fails.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, Broken> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.bytes());
        }
        let mut out = Vec::with_capacity(block.len() + 256); // more than deflate ever adds to so little
        self.0
            .compress_vec(&block, &mut out, FlushCompress::Sync)
            .map_err(|_| Broken("a header block cannot be compressed"))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_connection_build_on_each_other() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::default());
        for (n, stream) in ["error", "stdin", "stdout"].iter().enumerate() {
            let id = n.to_string();
            let block = deflater.write(&[("streamType", stream), ("Port", &id)]).unwrap();
            let headers = inflater.read(&block).unwrap();
            assert_eq!(headers["streamtype"], *stream);
            assert_eq!(headers["port"], id);
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let bomb = "x".repeat(LONGEST);
        let blocks: [&[(&str, &str)]; 3] = [&[("a", &bomb)], &[("a", "1"), ("A", "2")], &[("", "1")]];
        for headers in blocks {
            let block = Deflater::new().unwrap().write(headers);
            if let Ok(block) = block {
                assert!(Inflater::default().read(&block).is_err());
            }
        }
        for bad in [&b""[..], b"garbage", &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0xff, 0xff]] {
            assert!(Inflater::default().read(bad).is_err(), "{bad:?}");
        }
        for bad in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], &[0xff; 4]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
