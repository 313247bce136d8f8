//! A layer's archive, unpacked into a folder. Whoever made the archive chose every name and link in it.
//!
//! The `tar` crate only reads headers; what is made, is made here, through handles: a parent folder is opened with the
//! layer as its root, and the entry is made in that handle by its last name, never following a link.
//!
//! For an overlay snapshot the folder is the upper one, so a removal becomes what overlayfs reads as one (a character
//! device 0:0, an opaque folder) and nothing has to be mounted to unpack.
//!
//! Source: image-spec layer.md; kernel overlayfs.rst, "whiteouts and opaque directories".

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use sha2::{Digest as _, Sha256};

use crate::error::{Doing as _, Error, Result};
use crate::names::Digest;

/// A layer that unpacks to more than this is refused.
pub const LARGEST: u64 = 64 << 30;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an unpacked layer was: the digest and size of the archive, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub diff_id: Digest,
    pub size: u64,
    /// Folders that the archive puts something into and does not bring along: they look as in the layers below.
    pub implied: Vec<PathBuf>,
}

/// How removals are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removals {
    /// As overlayfs reads them: the folder is an upper one.
    Overlay,
    /// The named file is removed: the folder is the whole file system.
    Remove,
}

/// Unpacks an archive, compressed or not, into `folder`. Reads to the end of the stream.
///
/// # Errors
/// The archive is cut short or malformed, names a place outside, or is too large. The folder is then to be thrown away.
pub fn apply(stream: impl Read, folder: &Path, removals: Removals) -> Result<Applied> {
    let mut buffered = io::BufReader::with_capacity(128 << 10, stream);
    let magic = io::BufRead::fill_buf(&mut buffered).doing(|| "reading the layer".into())?;
    let plain: Box<dyn Read> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::Decoder::with_buffer(buffered).doing(|| "reading the layer as zstd".into())?)
        }
        _ => Box::new(buffered),
    };
    let mut archive = tar::Archive::new(Counted { stream: plain, hash: Sha256::new(), size: 0 });
    let root = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", folder.display()))?;
    let mut unpacker = Unpacker { root, removals, times: Vec::new(), parent: None, implied: Vec::new() };
    let doing = || "reading the layer's archive".to_owned();
    for entry in archive.entries().doing(doing)? {
        unpacker.entry(&mut entry.doing(doing)?)?;
    }
    unpacker.set_times()?;
    let mut counted = archive.into_inner();
    io::copy(&mut counted, &mut io::sink()).doing(doing)?; // what follows the archive is part of the digest
    Ok(Applied { diff_id: Digest::of_hash(&counted.hash.finalize()), size: counted.size, implied: unpacker.implied })
}

/// Gives folders that a layer only implied the owner and mode that they have in the layers below, top first.
///
/// # Errors
/// A folder cannot be changed.
pub fn inherit(folder: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let root = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", folder.display()))?;
    for path in implied {
        let there =
            |layer: &PathBuf| std::fs::symlink_metadata(layer.join(path)).ok().filter(std::fs::Metadata::is_dir);
        let Some(below) = lower.iter().find_map(there) else { continue };
        let doing = || format!("setting the owner and mode of {}", path.display());
        let Ok(made) = open_folder(&root, path).and_then(|made| reopen(&made)) else { continue }; // replaced by a later entry
        fchown(&made, Some(Uid::from_raw(below.uid())), Some(Gid::from_raw(below.gid()))).doing(doing)?;
        fchmod(&made, Mode::from_raw_mode(below.mode() & 0o7777)).doing(doing)?;
    }
    Ok(())
}

/// Opens a folder with the layer as its root: no link leads out.
fn open_folder(root: &OwnedFd, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {} // a rename somewhere raced the walk: openat2(2) says to try again
            answer => return answer,
        }
    }
}

struct Counted<R> {
    stream: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.size += length as u64;
        if self.size > LARGEST {
            return Err(io::Error::other(format!("it unpacks to more than {} GiB", LARGEST >> 30)));
        }
        Ok(length)
    }
}

struct Unpacker {
    root: OwnedFd,
    removals: Removals,
    /// Folders change when something is made in them, so their times come last.
    times: Vec<(PathBuf, Timestamps)>,
    /// The folder of the entry before, which mostly is that of the next too.
    parent: Option<(PathBuf, OwnedFd)>,
    implied: Vec<PathBuf>,
}

fn refused<T>(path: &Path, why: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("the layer's entry {}: {why}", path.display())))
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let path = cleaned(&entry.path().doing(|| "reading an entry's name".into())?)?;
        let kind = entry.header().entry_type();
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return if kind.is_dir() {
                self.root_folder(entry)
            } else {
                refused(Path::new("."), "the root must be a folder")
            };
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&folder)?;
        let doing = || format!("unpacking {}", path.display());
        if name.as_bytes() == OPAQUE {
            return self.make_opaque(&parent, &path);
        }
        if let Some(removed) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.remove(&parent, OsStr::from_bytes(removed), &path);
        }
        if kind.is_dir() {
            return self.folder(entry, &parent, &name, &path);
        }
        make_room(&parent, &name).doing(doing)?;
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                return file(entry, &parent, &name, &path);
            }
            tar::EntryType::Symlink => {
                let target = link_target(entry, &path)?;
                symlinkat(target.as_os_str(), &parent, &name).doing(doing)?;
            }
            tar::EntryType::Link => {
                let target = cleaned(&link_target(entry, &path)?)?;
                let Some(target_name) = target.file_name() else { return refused(&path, "a hard link to the root") };
                let folder = self.existing(target.parent().unwrap_or(Path::new(""))).doing(doing)?;
                return linkat(&folder, target_name, &parent, &name, AtFlags::empty()).doing(doing); // the file has its owner already
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                special(entry, &parent, &name, &path)?
            }
            tar::EntryType::XGlobalHeader => return Ok(()),
            other => return refused(&path, &format!("entries of type {other:?} are not supported")),
        }
        let metadata = Metadata::read(entry, &path)?;
        chownat(&parent, &name, Some(metadata.uid), Some(metadata.gid), AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
        utimensat(&parent, &name, &metadata.times, AtFlags::SYMLINK_NOFOLLOW).doing(doing)
    }

    fn root_folder<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let doing = || "setting the root's owner and mode".to_owned();
        let root = reopen(&self.root).doing(doing)?;
        let metadata = Metadata::read(entry, Path::new("/"))?;
        fchown(&root, Some(metadata.uid), Some(metadata.gid)).doing(doing)?;
        fchmod(&root, metadata.mode).doing(doing)
    }

    /// A handle to the folder that entries of `path` go into; what is missing is made as the layers below have it.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd> {
        let doing = || format!("unpacking into {}", path.display());
        if let Some((known, handle)) = &self.parent
            && known == path
        {
            return handle.try_clone().doing(doing);
        }
        let handle = match self.existing(path) {
            Err(Errno::NOENT) => self.make_parents(path)?,
            handle => handle.doing(doing)?,
        };
        self.parent = Some((path.to_owned(), handle.try_clone().doing(doing)?));
        Ok(handle)
    }

    fn existing(&self, path: &Path) -> std::result::Result<OwnedFd, Errno> {
        open_folder(&self.root, path)
    }

    fn make_parents(&mut self, path: &Path) -> Result<OwnedFd> {
        let mut at = PathBuf::new();
        let mut handle = self.existing(&at).doing(|| "opening the layer".into())?;
        for part in path.components() {
            let above = handle;
            at.push(part);
            let doing = || format!("making {}", at.display());
            handle = match self.existing(&at) {
                Err(Errno::NOENT) => {
                    mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)).doing(doing)?;
                    let made = self.existing(&at).doing(doing)?;
                    self.implied.push(at.clone());
                    made
                }
                handle => handle.doing(doing)?,
            };
        }
        Ok(handle)
    }

    fn folder<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        let open = || {
            openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        };
        let folder = match open() {
            Ok(folder) => folder,
            Err(_) => {
                make_room(parent, name).doing(doing)?;
                mkdirat(parent, name, Mode::from_raw_mode(0o700)).doing(doing)?;
                open().doing(doing)?
            }
        };
        let metadata = Metadata::read(entry, path)?;
        fchown(&folder, Some(metadata.uid), Some(metadata.gid)).doing(doing)?;
        fchmod(&folder, metadata.mode).doing(doing)?;
        metadata.set_attributes(&folder, path)?;
        self.times.push((path.to_owned(), metadata.times));
        self.parent = None; // it may have been a link before
        Ok(())
    }

    fn set_times(&self) -> Result<()> {
        for (path, times) in self.times.iter().rev() {
            let doing = || format!("setting the times of {}", path.display());
            // A later entry may have put something else in its place.
            let Ok(folder) = self.existing(path) else { continue };
            let folder = reopen(&folder).doing(doing)?;
            rustix::fs::futimens(&folder, times).doing(doing)?;
        }
        Ok(())
    }

    fn make_opaque(&self, parent: &OwnedFd, path: &Path) -> Result<()> {
        if self.removals == Removals::Remove {
            return refused(path, "an opaque folder needs an overlay snapshot");
        }
        let doing = || format!("unpacking {}", path.display());
        fsetxattr(reopen(parent).doing(doing)?, c"trusted.overlay.opaque", b"y", XattrFlags::empty()).doing(doing)
    }

    fn remove(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        if name.is_empty() || name == "." || name == ".." {
            return refused(path, "removes no file");
        }
        make_room(parent, name).doing(doing)?;
        if self.removals == Removals::Overlay {
            mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).doing(doing)?;
        }
        Ok(())
    }
}

/// A handle with which attributes may be changed, from one that only names.
fn reopen(handle: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    openat(handle.as_fd(), c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A path without a leading slash and dots.
fn cleaned(path: &Path) -> Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return refused(path, "leads out of the layer"),
        }
    }
    Ok(cleaned)
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf> {
    let target = entry.link_name().doing(|| format!("reading the link {}", path.display()))?;
    target.map_or_else(|| refused(path, "a link without a target"), |target| Ok(target.into_owned()))
}

/// Takes away what is in an entry's place.
fn make_room(parent: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => remove_folder(parent, name),
        Err(errno) => Err(errno),
    }
}

fn remove_folder(parent: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    let folder =
        openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let names: Vec<_> =
        rustix::fs::Dir::read_from(&folder)?.flatten().map(|entry| entry.file_name().to_owned()).collect();
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        make_room(&folder, OsStr::from_bytes(name.to_bytes()))?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn file<R: Read>(entry: &mut tar::Entry<'_, R>, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let doing = || format!("unpacking {}", path.display());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600)).doing(doing)?);
    io::copy(entry, &mut file).doing(doing)?;
    let metadata = Metadata::read(entry, path)?;
    fchown(&file, Some(metadata.uid), Some(metadata.gid)).doing(doing)?;
    fchmod(&file, metadata.mode).doing(doing)?; // after the owner, whose change takes setuid away
    metadata.set_attributes(&file, path)?;
    rustix::fs::futimens(&file, &metadata.times).doing(doing)
}

fn special<R: Read>(entry: &mut tar::Entry<'_, R>, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let mode = Metadata::read(entry, path)?.mode;
    let header = entry.header();
    let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
    let device = rustix::fs::makedev(number(header.device_major()), number(header.device_minor()));
    let kind = match header.entry_type() {
        tar::EntryType::Char if device == 0 => return refused(path, "a device 0:0 would be a removal in disguise"),
        tar::EntryType::Char => FileType::CharacterDevice,
        tar::EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = if kind == FileType::Fifo { 0 } else { device };
    mknodat(parent, name, kind, mode, device).doing(|| format!("unpacking {}", path.display()))?;
    let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("unpacking {}", path.display()))?;
    if Mode::from_raw_mode(there.st_mode) != mode {
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).doing(|| format!("unpacking {}", path.display()))?;
    }
    Ok(())
}

/// What the headers say of an entry, and the PAX extensions before it, which win.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    fn read<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<Metadata> {
        let doing = || format!("reading the extensions of {}", path.display());
        let (mut uid, mut gid, mut mtime) = (None, None, None);
        let mut attributes = Vec::new();
        if let Some(extensions) = entry.pax_extensions().doing(doing)? {
            for extension in extensions {
                let extension = extension.doing(doing)?; // a malformed one is an error: another reader would see other files
                let (key, value) = (extension.key_bytes(), extension.value_bytes());
                match key {
                    b"uid" => uid = Some(value.to_vec()),
                    b"gid" => gid = Some(value.to_vec()),
                    b"mtime" => mtime = Some(value.to_vec()),
                    _ => {
                        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| is_allowed(name)) {
                            attributes.push((name.to_vec(), value.to_vec()));
                        }
                    }
                }
            }
        }
        let header = entry.header();
        let time = match mtime {
            Some(text) => time(&text).map_or_else(|| refused(path, "its time is not a number"), Ok)?,
            None => Timespec { tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), tv_nsec: 0 },
        };
        Ok(Metadata {
            uid: Uid::from_raw(id(uid.as_deref(), &header.as_old().uid, || header.uid(), path)?),
            gid: Gid::from_raw(id(gid.as_deref(), &header.as_old().gid, || header.gid(), path)?),
            mode: Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777),
            times: Timestamps { last_access: time, last_modification: time },
            attributes,
        })
    }

    fn set_attributes(&self, file: impl std::os::fd::AsFd, path: &Path) -> Result<()> {
        for (name, value) in &self.attributes {
            let doing = || format!("setting attribute {} of {}", String::from_utf8_lossy(name), path.display());
            fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()).doing(doing)?;
        }
        Ok(())
    }
}

/// As far as an image may set them: file capabilities and the user's own, nothing that overlayfs or a security module reads.
fn is_allowed(attribute: &[u8]) -> bool {
    attribute == b"security.capability" || (attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay."))
}

/// A user or group: of the extension, else of the header, where an empty field is 0.
fn id(extension: Option<&[u8]>, field: &[u8], header: impl Fn() -> io::Result<u64>, path: &Path) -> Result<u32> {
    let number = match extension {
        Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok()),
        None if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Some(0),
        None => header().ok(),
    };
    let id = number.and_then(|number| u32::try_from(number).ok()).filter(|id| *id != u32::MAX);
    id.map_or_else(|| refused(path, "its owner is not a user or group id"), Ok)
}

/// Seconds with a fraction, as PAX has them.
fn time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanos = format!("{fraction:0<9}");
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos.get(..9)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    type Entry<'a> = (tar::EntryType, &'a str, &'a str);

    /// An archive with these entries, written without the checks that a good writer makes.
    fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            if link {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if *kind == tar::EntryType::Regular { content.as_bytes() } else { &[] };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(entries: &[Entry<'_>]) -> (tempfile::TempDir, Result<Applied>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("canary"), "host").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let applied = apply(archive(entries).as_slice(), &root, Removals::Overlay);
        assert_eq!(std::fs::read(dir.path().join("canary")).unwrap(), b"host", "{entries:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{entries:?} made something beside the root");
        (dir, applied)
    }

    use tar::EntryType::{Directory, Link, Regular, Symlink};

    #[test]
    fn no_entry_reaches_out_of_the_layer() {
        for (entries, expected) in [
            (&[(Regular, "../canary", "evil")][..], "leads out of the layer"),
            (&[(Regular, "a/../../canary", "evil")], "leads out of the layer"),
            (&[(Link, "x", "../canary")], "leads out of the layer"),
            (&[(Symlink, ".", "/")], "the root must be a folder"),
            (&[(Regular, ".wh..", "")], "removes no file"),
            (&[(Regular, ".wh...", "")], "removes no file"),
        ] {
            let (_dir, applied) = unpack(entries);
            let error = applied.unwrap_err().to_string();
            assert!(error.contains(expected), "{entries:?}: {error}");
        }
    }

    #[test]
    fn links_lead_back_into_the_layer() {
        let (dir, applied) = unpack(&[
            (Symlink, "up", "../.."),
            (Regular, "up/canary", "inside"),
            (Symlink, "abs", "/"),
            (Regular, "abs/two", "2"),
        ]);
        applied.unwrap();
        assert_eq!(std::fs::read(dir.path().join("root/canary")).unwrap(), b"inside");
        assert_eq!(std::fs::read(dir.path().join("root/two")).unwrap(), b"2");
    }

    #[test]
    fn removals_are_written_as_overlayfs_reads_them() {
        let (dir, applied) = unpack(&[(Directory, "d", ""), (Regular, "d/.wh.gone", ""), (Regular, "d/kept", "x")]);
        applied.unwrap();
        let gone = std::fs::symlink_metadata(dir.path().join("root/d/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(std::fs::read(dir.path().join("root/d/kept")).unwrap(), b"x");
    }

    #[test]
    fn an_archive_that_is_cut_short_is_an_error_and_compression_is_recognised() {
        let whole = archive(&[(Regular, "file", "content")]);
        let compressed = {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gzip, &whole).unwrap();
            gzip.finish().unwrap()
        };
        let run = |bytes: &[u8]| apply(bytes, tempfile::tempdir().unwrap().path(), Removals::Overlay);
        assert_eq!(run(&whole).unwrap(), run(&compressed).unwrap());
        assert_eq!(run(&whole).unwrap().diff_id, Digest::of(&whole));
        for cut in [20, compressed.len() / 2, compressed.len() - 1] {
            assert!(run(&compressed[..cut]).is_err(), "cut at {cut}");
        }
        assert!(run(&whole[..600]).is_err());
    }
}
