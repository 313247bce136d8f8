//! Folders for the volumes that an image declares: each begins with what the image has there, and lives as long as the
//! container.
//!
//! The image chose the paths: they are opened inside its root, and what is copied is opened by handle, link by link
//! (CVE-2022-23648).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::look::Root;
use crate::cri::folders;
use crate::cri::spec::{Bind, ImageConfig};
use crate::error::{Doing as _, Error, Result};

/// Makes the folders below `place` for those volumes that `mounted` says nothing is mounted at.
///
/// # Errors
/// A path is not absolute, or what the image has there cannot be copied.
pub fn make(image: &ImageConfig, root: &Root, place: &Path, mounted: impl Fn(&str) -> bool) -> Result<Vec<Bind>> {
    let mut binds = Vec::new();
    for (number, target) in image.volumes.iter().flat_map(|volumes| volumes.keys()).enumerate() {
        if mounted(target) {
            continue;
        }
        let doing = || format!("making the image's volume {target:?}");
        if !target.starts_with('/') || target.chars().any(char::is_control) {
            return Err(Error::InvalidArgument(format!("{}: its path is not absolute", doing())));
        }
        let source = place.join("volumes").join(number.to_string());
        folders::make(&source, 0o755)?;
        fill(root, target, &source).doing(doing)?;
        binds.push(Bind { source, target: target.clone(), read_only: false, mapped: true });
    }
    Ok(binds)
}

fn fill(root: &Root, target: &str, into: &PathBuf) -> io::Result<()> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = openat(CWD, root.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let from = match openat2(&base, target, flags, Mode::empty(), resolve) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()), // the image has nothing there
        Err(errno) => return Err(errno.into()),
    };
    let to = openat(CWD, into, flags, Mode::empty())?;
    copy(&from, &to)
}

/// Copies a folder's owner and mode, and all that is in it. Devices and sockets are left out, as in a package of files.
fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    dress(&File::from(from.try_clone()?), &File::from(to.try_clone()?))?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let open =
            |at: &OwnedFd, flags| openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                copy(&open(from, flags)?, &open(to, flags)?)?;
            }
            FileType::RegularFile => {
                let source = File::from(open(from, OFlags::RDONLY | OFlags::NONBLOCK)?);
                let copy = File::from(open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
                io::copy(&mut &source, &mut &copy)?;
                dress(&source, &copy)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&*link, to, name)?;
                let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
                rustix::fs::chownat(to.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn dress(from: &File, to: &File) -> io::Result<()> {
    let metadata = from.metadata()?;
    fchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    to.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777)) // after the owner, who takes bits away
}
