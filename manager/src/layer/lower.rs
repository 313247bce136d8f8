//! What a layer takes from those below it, once they are known: how folders look that it only goes through, and files that it
//! gives a further name. Layers are unpacked side by side, so neither can be looked up while that is done.
//!
//! Source: kernel overlayfs.rst, "whiteouts and opaque directories", "Non-directories" (a link copies the file up first).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fchmod, fchown, fgetxattr, fstat,
    futimens, linkat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::entry::refused;
use super::unpack::{is_whiteout, open_folder, open_root, reopen};
use super::{Applied, copy};
use crate::error::{Doing as _, Result};

/// Gives a layer that was unpacked what it takes from the layers below, top first.
///
/// # Errors
/// It names a file that is not below, or something cannot be made.
pub fn settle(folder: &Path, applied: &Applied, lower: &[PathBuf]) -> Result<()> {
    let root = open_root(folder)?;
    for path in &applied.implied {
        inherit(&root, path, lower)?;
    }
    for (path, target) in &applied.links {
        link(&root, path, target, lower)?;
    }
    Ok(())
}

/// A folder that the layer only implied has the owner and mode of the one below.
fn inherit(root: &OwnedFd, path: &Path, lower: &[PathBuf]) -> Result<()> {
    let Some(below) = lower.iter().find_map(|layer| looks(layer, path)) else { return Ok(()) };
    let doing = || format!("setting the owner and mode of {}", path.display());
    let Ok(made) = open_folder(root, path).and_then(|made| reopen(&made)) else { return Ok(()) }; // replaced by a later entry
    fchown(&made, Some(Uid::from_raw(below.st_uid)), Some(Gid::from_raw(below.st_gid))).doing(doing)?;
    fchmod(&made, Mode::from_raw_mode(below.st_mode & 0o7777)).doing(doing)
}

/// A folder of a layer below, which is as hostile: nothing is looked up through its links.
fn looks(layer: &Path, path: &Path) -> Option<Stat> {
    let root = open_root(layer).ok()?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fstat(openat2(&root, path, flags, Mode::empty(), within).ok()?).ok()
}

/// A further name for a file below: the file is copied into this layer, and has both names here.
fn link(root: &OwnedFd, path: &Path, target: &Path, lower: &[PathBuf]) -> Result<()> {
    let doing = || format!("unpacking {}: linking it to {}", path.display(), target.display());
    let ((folder, name), (home, own)) = (split(path), split(target));
    let parent = open_folder(root, folder).doing(doing)?;
    if statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(()); // a later entry took the name
    }
    let Some(below) = lower_file(lower, target) else {
        return refused(path, &format!("a link to {}, which neither the layer nor those below have", target.display()));
    };
    let home = make_folders(root, home, lower)?;
    if statat(&home, own, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return refused(
            path,
            &format!("a link to {}, which the layer puts something else in place of", target.display()),
        );
    }
    unchanged(&home, || copy::entry(&below, &home, own, target)).doing(doing)?;
    unchanged(&parent, || Ok(linkat(&home, own, &parent, name, AtFlags::empty())?)).doing(doing)
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

/// The folder that holds a file which shows through the layers, if it does.
fn lower_file(lower: &[PathBuf], target: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (folder, name) = split(target);
    'layers: for layer in lower {
        let mut at = openat(rustix::fs::CWD, layer, flags, Mode::empty()).ok()?;
        let mut covers = false;
        for part in folder.components() {
            at = match openat(&at, part.as_os_str(), flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) if covers => return None,
                Err(Errno::NOENT) => continue 'layers,
                Err(_) => return None, // no folder: whatever it is, it hides what lies below
            };
            covers |= is_opaque(&at);
        }
        match statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Directory => return None,
            Ok(_) if is_whiteout(&at, name) => return None,
            Ok(_) => return Some(at),
            Err(_) if covers => return None,
            Err(_) => {}
        }
    }
    None
}

fn is_opaque(folder: &OwnedFd) -> bool {
    let mut value = [0; 1];
    [c"trusted.overlay.opaque", c"user.overlay.opaque"]
        .iter()
        .any(|name| fgetxattr(folder, *name, &mut value[..]).is_ok_and(|length| length == 1 && value[0] == b'y'))
}

/// The folders on the way, looking as they do below.
fn make_folders(root: &OwnedFd, path: &Path, lower: &[PathBuf]) -> Result<OwnedFd> {
    let doing = || format!("making {}", path.display());
    let mut at = PathBuf::new();
    let mut handle = open_folder(root, &at).doing(doing)?;
    for part in path.components() {
        at.push(part);
        handle = match open_folder(root, &at) {
            Err(Errno::NOENT) => {
                let above = handle;
                unchanged(&above, || Ok(mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755))?))
                    .doing(doing)?;
                inherit(root, &at, lower)?;
                open_folder(root, &at).doing(doing)?
            }
            handle => handle.doing(doing)?,
        };
    }
    Ok(handle)
}

/// Makes something in a folder, which has the times afterwards that it had.
fn unchanged(folder: &OwnedFd, make: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    let before = fstat(folder)?;
    make()?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: before.st_atime, tv_nsec: before.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as i64 },
    };
    Ok(futimens(&reopen(folder)?, &times)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

    use super::*;
    use crate::names::Digest;

    /// Two layers, one on the other, and a third that is settled on them.
    struct Stage {
        dir: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Stage {
            let dir = tempfile::tempdir().unwrap();
            for layer in ["base", "middle", "top"] {
                fs::create_dir(dir.path().join(layer)).unwrap();
            }
            fs::create_dir_all(dir.path().join("base/usr/bin")).unwrap();
            fs::write(dir.path().join("base/usr/bin/tool"), "tool").unwrap();
            fs::set_permissions(dir.path().join("base/usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
            fs::set_permissions(dir.path().join("base/usr"), fs::Permissions::from_mode(0o750)).unwrap();
            chown(dir.path().join("base/usr"), Some(7), Some(8)).unwrap();
            Stage { dir }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn link(&self, path: &str, target: &str) -> Result<()> {
            let links = vec![(path.into(), target.into())];
            let applied = Applied { diff_id: Digest::of(b""), size: 0, implied: Vec::new(), links };
            settle(&self.at("top"), &applied, &[self.at("middle"), self.at("base")])
        }
    }

    #[test]
    fn a_link_to_a_file_below_brings_the_file_along_with_all_that_it_is() {
        let stage = Stage::new();
        let before = fs::metadata(stage.at("top")).unwrap().modified().unwrap();
        stage.link("tool", "usr/bin/tool").unwrap();
        let (name, own) =
            (fs::metadata(stage.at("top/tool")).unwrap(), fs::metadata(stage.at("top/usr/bin/tool")).unwrap());
        assert_eq!((name.ino(), name.nlink(), name.mode() & 0o7777), (own.ino(), 2, 0o4755));
        assert_eq!(fs::read_to_string(stage.at("top/tool")).unwrap(), "tool");
        let folder = fs::metadata(stage.at("top/usr")).unwrap();
        assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o7777), (7, 8, 0o750));
        assert_eq!(fs::metadata(stage.at("top")).unwrap().modified().unwrap(), before, "its own times stay");
    }

    #[test]
    fn what_does_not_show_through_cannot_be_linked_to() {
        let refuse = |prepare: &dyn Fn(&Stage)| {
            let stage = Stage::new();
            prepare(&stage);
            let said = stage.link("tool", "usr/bin/tool").unwrap_err().to_string();
            assert!(said.contains("tool: a link to usr/bin/tool, which"), "{said}");
            assert!(!stage.at("top/tool").exists());
        };
        refuse(&|stage| fs::remove_file(stage.at("base/usr/bin/tool")).unwrap());
        refuse(&|stage| {
            fs::create_dir_all(stage.at("middle/usr/bin")).unwrap();
            let whiteout = stage.at("middle/usr/bin/tool");
            rustix::fs::mknodat(rustix::fs::CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        });
        refuse(&|stage| {
            fs::create_dir_all(stage.at("middle/usr/bin")).unwrap();
            let folder = fs::File::open(stage.at("middle/usr")).unwrap();
            rustix::fs::fsetxattr(&folder, c"trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        });
        refuse(&|stage| std::os::unix::fs::symlink("/", stage.at("middle/usr")).unwrap());
        refuse(&|stage| {
            fs::create_dir_all(stage.at("top/usr/bin")).unwrap();
            fs::write(stage.at("top/usr/bin/tool"), "another").unwrap();
        });
    }
}
