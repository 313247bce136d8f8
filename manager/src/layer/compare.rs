//! What differs between two file systems, so that the one becomes the other.
//!
//! Both are walked side by side. Where the right one is an overlay on the left one, its upper folder says where to look at
//! all: what it does not name has not changed. The answer is the same with it and without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, flistxattr, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::entry::{allowed, refused};
use super::unpack::names;
use crate::error::{Doing as _, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not there any more.
    Removed,
    /// New, or other than before; or a folder on the way to something that is.
    Written,
}

/// What differs, folders before what they hold.
pub type Changes = BTreeMap<PathBuf, Change>;

/// Compares; without `left` everything is new.
///
/// # Errors
/// Something cannot be read.
pub fn compare(left: Option<&OwnedFd>, right: &OwnedFd, upper: Option<&OwnedFd>) -> Result<Changes> {
    let mut walk = Walk { left, right, upper, changes: Changes::new(), links: HashMap::new(), folders: Vec::new() };
    walk.root()?;
    while let Some(folder) = walk.folders.pop() {
        walk.folder(&folder)?;
    }
    Ok(walk.end())
}

/// A folder still to be walked. A list and no recursion: how deep it goes was somebody else's choice.
struct Folder {
    path: PathBuf,
    /// Whether the left side has it too.
    before: bool,
    /// Whether the upper folder names all that may differ.
    hinted: bool,
}

struct Walk<'w> {
    left: Option<&'w OwnedFd>,
    right: &'w OwnedFd,
    upper: Option<&'w OwnedFd>,
    changes: Changes,
    /// Files with several names, by their inode, on the right side.
    links: HashMap<(u64, u64), Vec<PathBuf>>,
    folders: Vec<Folder>,
}

impl Walk<'_> {
    fn root(&mut self) -> Result<()> {
        let path = PathBuf::new();
        if let Some(left) = self.left {
            let (before, now) = (open(left, &path)?, open(self.right, &path)?);
            let (old, new) = (stat(&before, OsStr::new("."), &path)?, stat(&now, OsStr::new("."), &path)?);
            // Its time alone changes with every file that comes and goes in it.
            if !same_owner(&old, &new) || attributes(&before, &path)? != attributes(&now, &path)? {
                self.changes.insert(path.clone(), Change::Written);
            }
        }
        let hinted = self.upper.is_some_and(|upper| !hides_below(upper, &path));
        self.folders.push(Folder { path, before: self.left.is_some(), hinted });
        Ok(())
    }

    fn folder(&mut self, folder: &Folder) -> Result<()> {
        let Folder { path, before, hinted } = folder;
        let right = open(self.right, path)?;
        let left = self.left.filter(|_| *before).map(|left| open(left, path)).transpose()?;
        let doing = || format!("reading {}", path.display());
        let mut to_look_at: BTreeSet<OsString> = BTreeSet::new();
        if let Some(upper) = self.upper.filter(|_| *hinted) {
            to_look_at.extend(names(&open(upper, path)?).doing(doing)?);
        } else {
            to_look_at.extend(names(&right).doing(doing)?);
            if let Some(left) = &left {
                to_look_at.extend(names(left).doing(doing)?);
            }
        }
        for name in to_look_at {
            self.name(folder, left.as_ref(), &right, &name)?;
        }
        Ok(())
    }

    fn name(&mut self, folder: &Folder, left: Option<&OwnedFd>, right: &OwnedFd, name: &OsStr) -> Result<()> {
        let path = folder.path.join(name);
        let old = left.map(|left| found(left, name, &path)).transpose()?.flatten();
        let Some(new) = found(right, name, &path)? else {
            if old.is_some() {
                self.note(&path, Change::Removed);
            }
            return Ok(());
        };
        if kind(&new) == FileType::Socket {
            // Nobody listens on it elsewhere, and no archive holds one.
            if old.is_some_and(|old| kind(&old) != FileType::Socket) {
                self.note(&path, Change::Removed);
            }
            return Ok(());
        }
        let is_folder = kind(&new) == FileType::Directory;
        let was_folder = old.as_ref().is_some_and(|old| kind(old) == FileType::Directory);
        let same = match (&old, left) {
            (Some(old), Some(left)) => self::same((left, old), (right, &new), name, &path)?,
            _ => false,
        };
        if !same {
            self.note(&path, Change::Written);
        }
        if is_folder {
            let hinted = folder.hinted && self.upper.is_some_and(|upper| !hides_below(upper, &path));
            self.folders.push(Folder { path, before: was_folder, hinted });
        } else if new.st_nlink > 1 {
            self.links.entry((new.st_dev, new.st_ino)).or_default().push(path);
        }
        Ok(())
    }

    /// Notes a change, and the folders on the way to it.
    fn note(&mut self, path: &Path, change: Change) {
        self.changes.insert(path.to_owned(), change);
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            if self.changes.insert(above.to_owned(), Change::Written).is_some() {
                break;
            }
        }
    }

    /// A file with several names comes with all of them, even those that it had before: a link cannot lead out of a layer.
    fn end(mut self) -> Changes {
        for paths in std::mem::take(&mut self.links).into_values() {
            if paths.iter().any(|path| self.changes.contains_key(path)) {
                for path in paths {
                    self.note(&path, Change::Written);
                }
            }
        }
        self.changes
    }
}

/// Opens a folder below a root. No link is followed, not even within.
///
/// # Errors
/// It is gone, or the path is longer than the kernel takes.
pub fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {} // a rename somewhere raced the walk: openat2(2) says to try again
            answer => return answer.doing(|| format!("opening {}", path.display())),
        }
    }
}

/// Opens a file by its own name. A fifo in its place would not be waited for.
pub fn open_file(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty()).doing(|| format!("opening {}", path.display()))
}

pub fn kind(there: &Stat) -> FileType {
    FileType::from_raw_mode(there.st_mode)
}

pub fn stat(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<Stat> {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("looking at {}", path.display()))
}

fn found(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        answer => answer.map(Some).doing(|| format!("looking at {}", path.display())),
    }
}

fn same_owner(old: &Stat, new: &Stat) -> bool {
    (old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid)
}

fn same((left, old): (&OwnedFd, &Stat), (right, new): (&OwnedFd, &Stat), name: &OsStr, path: &Path) -> Result<bool> {
    let times = (old.st_mtime, old.st_mtime_nsec) == (new.st_mtime, new.st_mtime_nsec);
    if !same_owner(old, new) || !times {
        return Ok(false);
    }
    match kind(new) {
        FileType::Directory => {
            let (left, right) = (open_file(left, name, path)?, open_file(right, name, path)?);
            Ok(attributes(&left, path)? == attributes(&right, path)?)
        }
        FileType::RegularFile => {
            if old.st_size != new.st_size {
                return Ok(false);
            }
            let (left, right) = (open_file(left, name, path)?, open_file(right, name, path)?);
            if attributes(&left, path)? != attributes(&right, path)? {
                return Ok(false);
            }
            // A time of whole seconds was set by a program that may have set it on both, so it proves nothing.
            Ok(new.st_mtime_nsec != 0 || same_content(left.into(), right.into(), path)?)
        }
        FileType::Symlink => {
            let target = |folder| readlinkat(folder, name, Vec::new()).doing(|| format!("reading {}", path.display()));
            Ok(target(left)? == target(right)?)
        }
        _ => Ok(old.st_rdev == new.st_rdev),
    }
}

fn same_content(mut left: File, mut right: File, path: &Path) -> Result<bool> {
    let doing = || format!("reading {}", path.display());
    let (mut old, mut new) = (Vec::new(), Vec::new());
    loop {
        old.clear();
        new.clear();
        (&mut left).take(128 << 10).read_to_end(&mut old).doing(doing)?;
        (&mut right).take(128 << 10).read_to_end(&mut new).doing(doing)?;
        if old != new {
            return Ok(false);
        }
        if old.is_empty() {
            return Ok(true);
        }
    }
}

/// The attributes that a layer can hold, in the order of their names.
///
/// # Errors
/// They cannot be read, or none could write such a name.
pub fn attributes(file: &OwnedFd, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let doing = || format!("reading the attributes of {}", path.display());
    let mut list = vec![0_u8; 64 << 10]; // the longest there is: xattr(7)
    let length = match flistxattr(file, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        answer => answer.doing(doing)?,
    };
    let mut attributes = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| allowed(name)) {
        if name.contains(&b'=') {
            return refused(path, "an attribute whose name holds an equals sign has no place in an archive");
        }
        let mut value = vec![0; 64 << 10];
        match fgetxattr(file, name, &mut value[..]) {
            Err(Errno::NODATA) => continue, // removed while we look
            answer => value.truncate(answer.doing(doing)?),
        }
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

/// Whether an upper folder shows other things of the layers below than those of its own name, or none: then it does not
/// name all that may differ. Source: kernel overlayfs.rst, "opaque directories", "redirect_dir".
fn hides_below(upper: &OwnedFd, path: &Path) -> bool {
    let Ok(folder) = open(upper, path) else { return true };
    let has = |name: &str| {
        let mut value = [0_u8; 4096];
        !matches!(fgetxattr(&folder, name, &mut value[..]), Err(Errno::NODATA | Errno::OPNOTSUPP))
    };
    ["trusted.overlay", "user.overlay"]
        .iter()
        .any(|kind| has(&format!("{kind}.opaque")) || has(&format!("{kind}.redirect")))
}

/// Whether an archive could not tell this name from a removal.
pub fn is_removal(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".wh.")
}
