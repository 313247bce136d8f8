//! A tmpfs that begins with what lies below it (`tmpcopyup`): names, owners, permissions, times and content.
//!
//! Nothing is allocated: names and links lie in buffers on the stack, one a level, and levels are counted.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, chmodat, chownat, mkdirat, mknodat, openat,
    readlinkat_raw, sendfile, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// The stack has room for many more; an image that has more is making fun of us.
const DEEPEST: usize = 200;

/// Copies all that lies in `from` into `to`. Links are copied as links and never followed.
///
/// # Errors
/// `ENAMETOOLONG` too many levels · those of the calls.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let from = open_folder(from, c".")?;
    copy_level(&from, to, DEEPEST)
}

fn open_folder(above: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty())
}

fn copy_level(from: &OwnedFd, to: BorrowedFd<'_>, levels: usize) -> Result<(), Errno> {
    if levels == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let mut names = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(from, &mut names);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let there = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(there.st_mode & 0o7777);
        match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (open_folder(from.as_fd(), name)?, open_folder(to, name)?);
                copy_level(&from, to.as_fd(), levels - 1)?;
            }
            FileType::RegularFile => copy_content(from.as_fd(), to, name)?,
            FileType::Symlink => {
                let mut link = [0; libc::PATH_MAX as usize];
                let length = readlinkat_raw(from, name, &mut link[..libc::PATH_MAX as usize - 1])?;
                link[length] = 0;
                symlinkat(CStr::from_bytes_until_nul(&link).map_err(|_| Errno::INVAL)?, to, name)?;
            }
            kind => mknodat(to, name, kind, mode, there.st_rdev)?,
        }
        give_looks(to, name, &there, mode)?;
    }
    Ok(())
}

fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    const AT_ONCE: usize = 1 << 20;
    let source =
        openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    while sendfile(&copy, &source, None, AT_ONCE)? > 0 {}
    Ok(())
}

/// Owner before mode: a change of owner takes the set-user-ID bit off, chown(2).
fn give_looks(folder: BorrowedFd<'_>, name: &CStr, there: &Stat, mode: Mode) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(there.st_uid), Gid::from_raw(there.st_gid));
    chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(there.st_mode) != FileType::Symlink {
        chmodat(folder, name, mode, AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: there.st_atime, tv_nsec: there.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: there.st_mtime, tv_nsec: there.st_mtime_nsec as i64 },
    };
    utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn a_copy_looks_like_what_it_was_made_of() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/file"), vec![7; 3 << 20]).unwrap();
        chown(from.path().join("a/b/file"), Some(12), Some(34)).unwrap();
        fs::set_permissions(from.path().join("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.path().join("a/b"), fs::Permissions::from_mode(0o1703)).unwrap();
        symlink("/nowhere/at/all", from.path().join("link")).unwrap();
        for number in 0..500 {
            fs::write(from.path().join(format!("a/one of many names {number}")), "").unwrap();
        }
        let open = |dir: &tempfile::TempDir| fs::File::open(dir.path()).unwrap();
        copy(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        for path in ["a", "a/b", "a/b/file", "link", "a/one of many names 499"] {
            let looks = |dir: &tempfile::TempDir| {
                let there = fs::symlink_metadata(dir.path().join(path)).unwrap();
                (there.mode(), there.uid(), there.gid(), there.mtime(), there.mtime_nsec())
            };
            assert_eq!(looks(&to), looks(&from), "{path}");
        }
        assert_eq!(fs::read(to.path().join("a/b/file")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(fs::read_link(to.path().join("link")).unwrap().to_str(), Some("/nowhere/at/all"));
        assert_eq!(fs::read_dir(to.path().join("a")).unwrap().count(), 501);
    }

    #[test]
    fn a_tree_without_end_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("d/".repeat(DEEPEST + 1))).unwrap();
        let open = |dir: &tempfile::TempDir| fs::File::open(dir.path()).unwrap();
        assert_eq!(copy(open(&from).as_fd(), open(&to).as_fd()), Err(Errno::NAMETOOLONG));
    }
}
