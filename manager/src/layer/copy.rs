//! Files and trees with everything that a layer can hold, from one folder into another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

/// Copies a tree with everything that a layer can hold. Nothing is followed: each name is opened in its own folder.
///
/// # Errors
/// The system's.
pub fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let open = |path: &Path| openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    Copy { names: HashMap::new() }.folder(&open(from)?, &open(to)?, to)
}

/// Copies `name` from one folder into another, where it is not yet; `at` is its path there.
///
/// # Errors
/// The system's.
pub fn entry(from: &OwnedFd, to: &OwnedFd, name: &OsStr, at: &Path) -> io::Result<()> {
    Copy { names: HashMap::new() }.entry(from, to, name, at)
}

struct Copy {
    /// Files with several names: where the first of them was copied to.
    names: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, at: &Path) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(from, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        for name in names {
            self.entry(from, to, &name, &at.join(&name))?;
        }
        dress(from, to)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &OsStr, at: &Path) -> io::Result<()> {
        let there = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind != FileType::Directory && there.st_nlink > 1 {
            if let Some(first) = self.names.get(&(there.st_dev, there.st_ino)) {
                return Ok(linkat(CWD, first, to, name, AtFlags::empty())?);
            }
            self.names.insert((there.st_dev, there.st_ino), at.to_owned());
        }
        let own = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                let from = openat(from, name, own | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let to = openat(to, name, own | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                self.folder(&from, &to, at)
            }
            FileType::RegularFile => {
                let mut from = File::from(openat(from, name, own | OFlags::RDONLY, Mode::empty())?);
                let made = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let mut to = File::from(openat(to, name, own | made, Mode::from_raw_mode(0o600))?);
                io::copy(&mut from, &mut to)?; // in the kernel: copy_file_range(2), which shares blocks where it can
                dress(&from.into(), &to.into())
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                dress_name(to, name, &there)
            }
            kind => {
                mknodat(to, name, kind, Mode::from_raw_mode(there.st_mode), there.st_rdev)?;
                dress_name(to, name, &there)?;
                // The folder is ours alone and the name was made a moment ago, so it is no link.
                Ok(rustix::fs::chmodat(to, name, Mode::from_raw_mode(there.st_mode), AtFlags::empty())?)
            }
        }
    }
}

fn times(there: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: there.st_atime, tv_nsec: there.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: there.st_mtime, tv_nsec: there.st_mtime_nsec as i64 },
    }
}

/// Owner, mode, attributes and times of an open file or folder.
///
/// # Errors
/// The system's.
pub fn dress(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let there = fstat(from)?;
    fchown(to, Some(rustix::process::Uid::from_raw(there.st_uid)), Some(rustix::process::Gid::from_raw(there.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(there.st_mode))?;
    for name in attributes(from)? {
        let mut value = vec![0; 64 << 10]; // the longest there is: xattr(7)
        let length = fgetxattr(from, name.as_slice(), &mut value[..])?;
        fsetxattr(to, name.as_slice(), &value[..length], XattrFlags::empty())?;
    }
    Ok(futimens(to, &times(&there))?)
}

fn dress_name(to: &OwnedFd, name: &OsStr, there: &Stat) -> io::Result<()> {
    let (uid, gid) = (rustix::process::Uid::from_raw(there.st_uid), rustix::process::Gid::from_raw(there.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(to, name, &times(there), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attributes(file: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0_u8; 64 << 10]; // the longest there is: xattr(7)
    match flistxattr(file, &mut list[..]) {
        Ok(length) => {
            Ok(list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
        }
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
    }
}
