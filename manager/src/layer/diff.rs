//! A layer's archive, made from what differs between two snapshots.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat, major, minor, readlinkat};
use sha2::{Digest as _, Sha256};

use super::compare::{Change, Changes, attributes, compare, is_removal, kind, open, open_file, stat};
use super::entry::{Entry, Kind, refused};
use super::view::{self, Source};
use super::write::Writer;
use crate::error::{Doing as _, Error, Result};
use crate::names::Digest;

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// The archive that was made: digest and size of it unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub diff_id: Digest,
    pub size: u64,
}

/// Writes to `out` what makes of `left` (or of nothing) `right`. A time later than `newest` is written as that.
///
/// `place` is any folder: see [`view::open`].
///
/// # Errors
/// Something cannot be read, or has no place in an archive; or `out` cannot be written.
pub fn diff(
    left: Option<&Source>,
    right: &Source,
    place: &Path,
    packing: Packing,
    newest: Option<i64>,
    out: impl Write,
) -> Result<Made> {
    let sources: Vec<&Source> = std::iter::once(right).chain(left).collect();
    let shown = view::open(&sources, place)?;
    let upper = left.and_then(|left| right.upper_on(left)).map(super::unpack::open_root).transpose()?;
    let changes = compare(shown.get(1), &shown[0], upper.as_ref())?;
    let mut packer = Packer::new(packing, out).doing(|| "writing the layer".into())?;
    let mut counted = Counted { out: &mut packer, hash: Sha256::new(), size: 0 };
    write(&shown[0], &changes, newest, &mut counted)?;
    let made = Made { diff_id: Digest::of_hash(&counted.hash.finalize()), size: counted.size };
    packer.end().doing(|| "writing the layer".into())?;
    Ok(made)
}

fn write(root: &OwnedFd, changes: &Changes, newest: Option<i64>, out: impl Write) -> Result<()> {
    let mut writer = Writer::new(out);
    let mut links = HashMap::new();
    let mut parent: Option<(PathBuf, OwnedFd)> = None;
    for (path, change) in changes {
        let above = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or(".".as_ref());
        if is_removal(name) {
            return refused(path, "its name is that of a removal");
        }
        let doing = || format!("writing {} to the layer", path.display());
        if *change == Change::Removed {
            writer.entry(&removal(path), &mut io::empty()).doing(doing)?;
            continue;
        }
        let folder = match parent.take() {
            Some((known, folder)) if known == above => folder,
            _ => open(root, above)?,
        };
        let there = stat(&folder, name, path)?;
        let mut entry = Entry::new(path.clone(), Kind::File);
        (entry.uid, entry.gid, entry.mode) = (there.st_uid, there.st_gid, there.st_mode & 0o7777);
        entry.time = bounded((there.st_mtime, there.st_mtime_nsec as u32), newest);
        let first = (kind(&there) != FileType::Directory && there.st_nlink > 1)
            .then(|| links.insert((there.st_dev, there.st_ino), path.clone()))
            .flatten();
        let mut content = None;
        if let Some(first) = first {
            links.insert((there.st_dev, there.st_ino), first.clone());
            (entry.kind, entry.link) = (Kind::Link, first);
        } else {
            match kind(&there) {
                FileType::Directory => {
                    entry.kind = Kind::Folder;
                    entry.attributes = attributes(&open_file(&folder, name, path)?, path)?;
                }
                FileType::RegularFile => {
                    let file = open_file(&folder, name, path)?;
                    entry.attributes = attributes(&file, path)?;
                    entry.size = fstat(&file).doing(doing)?.st_size.unsigned_abs();
                    content = Some(File::from(file));
                }
                FileType::Symlink => {
                    let target = readlinkat(&folder, name, Vec::new()).doing(doing)?;
                    (entry.kind, entry.link) = (Kind::Symlink, OsString::from_vec(target.into_bytes()).into());
                }
                FileType::CharacterDevice if there.st_rdev == 0 => {
                    return refused(path, "a device 0:0 would be a removal in disguise");
                }
                FileType::CharacterDevice => entry.kind = Kind::Char,
                FileType::BlockDevice => entry.kind = Kind::Block,
                FileType::Fifo => entry.kind = Kind::Fifo,
                _ => return Err(Error::Internal(format!("{}: became something else", doing()))),
            }
            if matches!(entry.kind, Kind::Char | Kind::Block) {
                entry.device = (major(there.st_rdev), minor(there.st_rdev));
            }
        }
        let mut content: Box<dyn Read> =
            content.map_or_else(|| Box::new(io::empty()) as Box<dyn Read>, |f| Box::new(f));
        writer.entry(&entry, &mut content).doing(doing)?;
        parent = Some((above.to_owned(), folder));
    }
    writer.end().doing(|| "writing the layer".into())?;
    Ok(())
}

/// Source: image-spec layer.md, "Whiteouts".
fn removal(path: &Path) -> Entry {
    let mut name = OsString::from(".wh.");
    name.push(path.file_name().unwrap_or_default());
    Entry::new(path.with_file_name(name), Kind::File)
}

fn bounded(time: (i64, u32), newest: Option<i64>) -> (i64, u32) {
    newest.map_or(time, |newest| time.min((newest, 0)))
}

struct Counted<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Neither the time nor a name gets into what it makes.
enum Packer<W: Write> {
    Plain(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Packer<W> {
    fn new(packing: Packing, out: W) -> io::Result<Packer<W>> {
        Ok(match packing {
            Packing::Plain => Packer::Plain(out),
            Packing::Gzip => Packer::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default())),
            Packing::Zstd => Packer::Zstd(zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?),
        })
    }

    fn end(self) -> io::Result<()> {
        match self {
            Packer::Plain(out) => Ok(out),
            Packer::Gzip(gzip) => gzip.finish(),
            Packer::Zstd(zstd) => zstd.finish(),
        }?
        .flush()
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packer::Plain(out) => out.write(bytes),
            Packer::Gzip(gzip) => gzip.write(bytes),
            Packer::Zstd(zstd) => zstd.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packer::Plain(out) => out.flush(),
            Packer::Gzip(gzip) => gzip.flush(),
            Packer::Zstd(zstd) => zstd.flush(),
        }
    }
}
