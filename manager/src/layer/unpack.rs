//! Makes entries in a folder, each through a handle to the folder it goes into.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::archive::Archive;
use super::entry::{Entry, Kind, cleaned, refused};
use super::{LARGEST, MOST_ENTRIES, Removals};
use crate::error::{Doing as _, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags, chmod, chownat, fchmod, fchown,
    fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What is read of a file at once.
const PIECE: usize = 128 << 10;

/// # Errors
/// The layer's own folder cannot be opened.
pub fn open_root(folder: &Path) -> Result<OwnedFd> {
    openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", folder.display()))
}

/// Opens a folder with the layer as its root: no link leads out.
pub fn open_folder(root: &OwnedFd, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {} // a rename somewhere raced the walk: openat2(2) says to try again
            answer => return answer,
        }
    }
}

/// A handle with which attributes may be changed, from one that only names.
pub fn reopen(handle: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    openat(handle.as_fd(), c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What is to be taken from the layers below: folders, and names with what they link to.
pub type Below = (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>);

pub struct Unpacker {
    root: OwnedFd,
    removals: Removals,
    entries: u64,
    /// Bytes that files may still take.
    room: u64,
    piece: Vec<u8>,
    /// Folders change when something is made in them, so their times come last.
    times: Vec<(PathBuf, Timestamps)>,
    /// The folder of the entry before, which mostly is that of the next too.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Parents first.
    implied: BTreeSet<PathBuf>,
    /// Those whose targets are not in this layer.
    links: Vec<(PathBuf, PathBuf)>,
    /// What this layer made, where an opaque folder has to tell it from what was there.
    made: HashSet<PathBuf>,
}

impl Unpacker {
    /// # Errors
    /// The folder cannot be opened.
    pub fn open(folder: &Path, removals: Removals) -> Result<Unpacker> {
        Ok(Unpacker {
            root: open_root(folder)?,
            removals,
            entries: 0,
            room: LARGEST,
            piece: vec![0; PIECE],
            times: Vec::new(),
            parent: None,
            implied: BTreeSet::new(),
            links: Vec::new(),
            made: HashSet::new(),
        })
    }

    /// Makes what an entry says; a file's content is read from `content`.
    ///
    /// # Errors
    /// It leads out of the layer, is too large, or cannot be made.
    pub fn entry<R: Read>(&mut self, entry: &Entry, content: &mut Archive<R>) -> Result<()> {
        let path = cleaned(&entry.path)?;
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return refused(&path, &format!("the layer has more than {MOST_ENTRIES} entries"));
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return if entry.kind == Kind::Folder {
                self.root_folder(entry)
            } else {
                refused(Path::new("."), "the root must be a folder")
            };
        };
        self.forget_below(&path);
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        if name.as_bytes() == OPAQUE {
            return self.make_opaque(&parent, &path);
        }
        if let Some(removed) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.remove(&parent, OsStr::from_bytes(removed), &path);
        }
        if self.removals == Removals::Remove {
            self.note_made(&path);
        }
        if entry.kind == Kind::Folder {
            return self.folder(entry, &parent, &name, path);
        }
        let doing = || format!("unpacking {}", path.display());
        if matches!(entry.kind, Kind::Link | Kind::Symlink) && entry.link.as_os_str().is_empty() {
            return refused(&path, "a link without a target");
        }
        if entry.kind != Kind::File {
            make_room(&parent, &name).doing(doing)?;
        }
        match entry.kind {
            Kind::File | Kind::Folder => return self.file(entry, content, &parent, &name, &path),
            Kind::Link => {
                let target = cleaned(&entry.link)?;
                let Some(target_name) = target.file_name() else { return refused(&path, "a hard link to the root") };
                let folder = open_folder(&self.root, target.parent().unwrap_or(Path::new("")));
                let linked = folder.and_then(|folder| linkat(&folder, target_name, &*parent, &name, AtFlags::empty()));
                return match linked {
                    // What a mounted overlay would find below is looked for when the layers below are known.
                    Err(Errno::NOENT) if self.removals != Removals::Remove => {
                        self.links.push((path, target));
                        Ok(())
                    }
                    linked => linked.doing(doing), // it looks as its target
                };
            }
            Kind::Symlink => symlinkat(entry.link.as_os_str(), &*parent, &name).doing(doing)?,
            Kind::Char | Kind::Block | Kind::Fifo => special(entry, &parent, &name, &path)?,
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(&*parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
        utimensat(&*parent, &name, &entry.times(), AtFlags::SYMLINK_NOFOLLOW).doing(doing)
    }

    /// Sets the times of folders, now that nothing more is made in them; gives the folders that no entry brought along, and links to what is not here.
    ///
    /// # Errors
    /// A time cannot be set.
    pub fn finish(self) -> Result<Below> {
        for (path, times) in self.times.iter().rev() {
            let doing = || format!("setting the times of {}", path.display());
            // A later entry may have put something else in its place.
            let Ok(folder) = open_folder(&self.root, path) else { continue };
            futimens(&reopen(&folder).doing(doing)?, times).doing(doing)?;
        }
        Ok((self.implied.into_iter().collect(), self.links))
    }

    /// A folder that holds something of this layer's is kept with it.
    fn note_made(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.made.insert(path.to_owned()) {
                break;
            }
        }
    }

    fn root_folder(&mut self, looks: &Entry) -> Result<()> {
        let doing = || "setting the root's owner and mode".to_owned();
        let root = reopen(&self.root).doing(doing)?;
        dress(&root, looks, Path::new("/"))?;
        self.times.push((PathBuf::new(), looks.times()));
        Ok(())
    }

    /// Whatever is at `path` may go: a handle kept to a folder there would be one to a folder that is gone.
    fn forget_below(&mut self, path: &Path) {
        if self.parent.as_ref().is_some_and(|(known, _)| known.starts_with(path)) {
            self.parent = None;
        }
    }

    /// A handle to the folder that entries of `path` go into; what is missing is made as the layers below have it.
    fn parent(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        let doing = || format!("unpacking into {}", path.display());
        if let Some((known, handle)) = &self.parent
            && known == path
        {
            return Ok(handle.clone());
        }
        let handle = match open_folder(&self.root, path) {
            Err(Errno::NOENT) => self.make_parents(path)?,
            handle => handle.doing(doing)?,
        };
        let handle = Rc::new(handle);
        self.parent = Some((path.to_owned(), handle.clone()));
        Ok(handle)
    }

    fn make_parents(&mut self, path: &Path) -> Result<OwnedFd> {
        let mut at = PathBuf::new();
        let mut handle = open_folder(&self.root, &at).doing(|| "opening the layer".into())?;
        for part in path.components() {
            let above = handle;
            at.push(part);
            let doing = || format!("making {}", at.display());
            handle = match open_folder(&self.root, &at) {
                Err(Errno::NOENT) => {
                    mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)).doing(doing)?;
                    self.implied.insert(at.clone());
                    open_folder(&self.root, &at).doing(doing)?
                }
                handle => handle.doing(doing)?,
            };
        }
        Ok(handle)
    }

    fn folder(&mut self, looks: &Entry, parent: &OwnedFd, name: &OsStr, path: PathBuf) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        let folder = match open_own(parent, name) {
            Ok(folder) => folder,
            Err(_) => {
                let removed = self.removals != Removals::Remove && is_whiteout(parent, name);
                make_room(parent, name).doing(doing)?;
                mkdirat(parent, name, Mode::from_raw_mode(0o700)).doing(doing)?;
                let folder = open_own(parent, name).doing(doing)?;
                if removed {
                    // Removed and made again: what the layers below have in it stays removed.
                    mark_opaque(&folder, self.removals).doing(doing)?;
                }
                folder
            }
        };
        dress(&folder, looks, &path)?;
        self.implied.remove(&path);
        self.times.push((path, looks.times()));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        content: &mut Archive<R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        let Some(room) = self.room.checked_sub(entry.size) else {
            return refused(path, &format!("the layer unpacks to more than {} GiB", LARGEST >> 30));
        };
        self.room = room;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let opened = match openat(parent, name, flags, mode) {
            Err(Errno::EXIST) => make_room(parent, name).and_then(|()| openat(parent, name, flags, mode)),
            opened => opened, // mostly there is nothing in its place
        };
        let mut file = std::fs::File::from(opened.doing(doing)?);
        for (offset, length) in entry.parts.as_deref().unwrap_or(&[(0, entry.size)]) {
            if entry.parts.is_some() {
                file.seek(SeekFrom::Start(*offset)).doing(doing)?;
            }
            let mut left = *length;
            while left > 0 {
                let piece = self.piece.len().min(usize::try_from(left).unwrap_or(PIECE));
                let read = fill(content, &mut self.piece[..piece]).doing(doing)?;
                if read == 0 {
                    return refused(path, &format!("it ends {left} bytes early"));
                }
                file.write_all(&self.piece[..read]).doing(doing)?;
                left -= read as u64;
            }
        }
        if entry.parts.is_some() {
            file.set_len(entry.size).doing(doing)?; // a hole at its end
        }
        dress(&file, entry, path)?;
        futimens(&file, &entry.times()).doing(doing)
    }

    fn make_opaque(&self, parent: &OwnedFd, path: &Path) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        let folder = reopen(parent).doing(doing)?;
        match self.removals {
            Removals::Overlay | Removals::UserOverlay => mark_opaque(&folder, self.removals),
            Removals::Remove => self.clear(&folder, path.parent().unwrap_or(Path::new(""))),
        }
        .doing(doing)
    }

    /// Removes what a folder holds and this layer did not make.
    fn clear(&self, folder: &OwnedFd, path: &Path) -> std::result::Result<(), Errno> {
        for name in names(folder)? {
            let at = path.join(&name);
            if !self.made.contains(&at) {
                make_room(folder, &name)?;
            } else if let Ok(below) = open_own(folder, &name) {
                self.clear(&below, &at)?;
            }
        }
        Ok(())
    }

    fn remove(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let doing = || format!("unpacking {}", path.display());
        if name.is_empty() || name == "." || name == ".." {
            return refused(path, "removes no file");
        }
        make_room(parent, name).doing(doing)?;
        if self.removals != Removals::Remove {
            mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).doing(doing)?;
        }
        Ok(())
    }
}

/// Gives an open file or folder its owner, mode and attributes.
fn dress(file: &impl AsFd, looks: &Entry, path: &Path) -> Result<()> {
    let doing = || format!("setting owner and mode of {}", path.display());
    fchown(file, Some(Uid::from_raw(looks.uid)), Some(Gid::from_raw(looks.gid))).doing(doing)?;
    fchmod(file, Mode::from_raw_mode(looks.mode)).doing(doing)?; // after the owner, whose change takes setuid away
    for (name, value) in &looks.attributes {
        match fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {} // not every file system has them
            answer => {
                answer.doing(|| format!("setting attribute {} of {}", String::from_utf8_lossy(name), path.display()))?
            }
        }
    }
    Ok(())
}

/// As much as there is, up to a whole piece: a file is written in few calls.
fn fill(content: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match content.read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Opens a folder by its own name, not through a link.
fn open_own(parent: &OwnedFd, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

pub fn is_whiteout(parent: &OwnedFd, name: &OsStr) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::CharacterDevice && there.st_rdev == 0)
}

fn mark_opaque(folder: &OwnedFd, removals: Removals) -> std::result::Result<(), Errno> {
    let name = if removals == Removals::UserOverlay { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    fsetxattr(folder, name, b"y", XattrFlags::empty())
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
    let folder = open_own(parent, name)?;
    for name in names(&folder)? {
        make_room(&folder, &name)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// What a folder holds.
pub fn names(folder: &OwnedFd) -> std::result::Result<Vec<std::ffi::OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn special(entry: &Entry, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let doing = || format!("unpacking {}", path.display());
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    let kind = match entry.kind {
        Kind::Char if device == 0 => return refused(path, "a device 0:0 would be a removal in disguise"),
        Kind::Char => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let mode = Mode::from_raw_mode(entry.mode);
    mknodat(parent, name, kind, mode, device).doing(doing)?;
    // The umask had its say in mknod(2). A device cannot be opened without meaning it, so its mode is set through the handle
    // that only names it: no second look at the name, which might be a link by then.
    let there = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).doing(doing)?;
    if FileType::from_raw_mode(fstat(&there).doing(doing)?.st_mode) != kind {
        return refused(path, "it was replaced while it was unpacked");
    }
    chownat(&there, c"", Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), AtFlags::EMPTY_PATH)
        .doing(doing)?;
    chmod(format!("/proc/self/fd/{}", there.as_raw_fd()), mode).doing(doing)
}
