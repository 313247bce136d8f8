//! A layer's archive, unpacked into a folder or made from what differs between two snapshots.
//!
//! ```text
//! apply    stream ▶ meter ▶ archive ▶ entry ▶ unpack        whoever made the archive chose every name, size and link in it
//! diff     view ▶ compare ▶ entry ▶ write                   what differs, always as the same bytes
//! ```
//!
//! What is made, is made through handles: a parent folder is opened with the layer as its root, and the entry is made in that
//! handle by its last name, never following a link.
//!
//! For an overlay snapshot the folder is the upper one, so a removal becomes what overlayfs reads as one (a character
//! device 0:0, an opaque folder) and nothing has to be mounted to unpack.
//!
//! Source: image-spec layer.md; kernel overlayfs.rst, "whiteouts and opaque directories".

pub(crate) mod archive;
mod compare;
pub(crate) mod copy;
mod diff;
pub(crate) mod entry;
mod header;
mod lower;
mod meter;
mod target;
mod unpack;
mod view;
pub(crate) mod write;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use diff::{Made, Packing, diff};
pub use lower::settle;
pub use target::Target;
pub use view::Source;

use crate::error::{Doing as _, Result};
use crate::names::Digest;
use archive::Archive;
use meter::Meter;
use unpack::Unpacker;

/// A layer that unpacks to more bytes than this is refused, and so is a file in it.
pub const LARGEST: u64 = 64 << 30;
/// A layer with more entries than this is refused: each takes an inode.
pub const MOST_ENTRIES: u64 = 8 << 20;
/// What describes one entry (its headers, long names, attributes) may take this much; it is held in memory.
pub const LONGEST_HEADER: u64 = 1 << 20;

/// What an unpacked layer was: the digest and size of the archive, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub diff_id: Digest,
    pub size: u64,
    /// Folders that the archive puts something into and does not bring along: they look as in the layers below.
    pub implied: Vec<PathBuf>,
    /// Names of files that only the layers below have: the name, and what it links to.
    pub links: Vec<(PathBuf, PathBuf)>,
}

/// How removals are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removals {
    /// As overlayfs reads them: the folder is an upper one.
    Overlay,
    /// The same, for one mounted with `userxattr`.
    UserOverlay,
    /// The named file is removed: the folder is the whole file system.
    Remove,
}

/// Unpacks an archive, compressed or not, into `folder`. Reads to the end of the stream.
///
/// # Errors
/// The archive is cut short or malformed, names a place outside, or is too large. The folder is then to be thrown away.
pub fn apply(stream: impl Read, folder: &Path, removals: Removals) -> Result<Applied> {
    let mut archive = Archive::new(Meter::new(plain(stream)?));
    let mut unpacker = Unpacker::open(folder, removals)?;
    while let Some(entry) = archive.next()? {
        unpacker.entry(&entry, &mut archive)?;
    }
    let (implied, links) = unpacker.finish()?;
    let mut meter = archive.into_inner();
    let doing = || "reading the archive".to_owned();
    io::copy(&mut meter, &mut io::sink()).doing(doing)?; // what follows the archive is part of the digest
    let (diff_id, size) = meter.end();
    Ok(Applied { diff_id, size, implied, links })
}

/// The archive itself, whichever way it is packed: told by its first bytes. Members and frames that follow are part of it.
///
/// # Errors
/// The stream's.
pub fn plain<'s>(mut stream: impl Read + 's) -> Result<Box<dyn Read + 's>> {
    let mut magic = Vec::new();
    (&mut stream).take(4).read_to_end(&mut magic).doing(|| "reading the archive".into())?; // it may come byte by byte
    let whole = io::BufReader::with_capacity(128 << 10, io::Cursor::new(magic.clone()).chain(stream));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::with_buffer(whole).doing(|| "reading the archive as zstd".into())?)
        }
        _ => Box::new(whole),
    })
}

#[cfg(test)]
mod roundtrip;
#[cfg(test)]
mod tests;
