//! The root file system that the daemon asks for, mounted in the bundle.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tare_proto::containerd::types::Mount;

use crate::{Doing as _, Error};

/// Options that are flags; the rest is for the file system. Source: mount(8).
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("bind", MountFlags::BIND, true),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("rbind", MountFlags::BIND.union(MountFlags::REC), true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

/// Mounts all of them, one on another.
///
/// # Errors
/// The one that was refused; those before it are taken off again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), Error> {
    for mount in mounts {
        if let Err(error) = mount_one(mount, target) {
            unmount_all(target)?;
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(asked: &Mount, target: &Path) -> Result<(), Error> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in &asked.options {
        match FLAGS.iter().find(|(word, ..)| word == option) {
            Some((_, flag, true)) => flags |= *flag,
            Some((_, flag, false)) => flags -= *flag,
            None => data.push(option.as_str()),
        }
    }
    let place = if asked.target.is_empty() { target.to_owned() } else { below(target, &asked.target)? };
    let doing = || format!("mounting {} at {}", asked.source, place.display());
    let data =
        CString::new(data.join(",")).map_err(|_| Error::new(format!("{}: an option has a zero byte", doing())))?;
    mount(asked.source.as_str(), &place, asked.r#type.as_str(), flags, data.as_c_str()).doing(doing)?;
    let readonly_bind = MountFlags::BIND | MountFlags::RDONLY;
    if flags.contains(readonly_bind) {
        // A bind mount takes its flags only in a second step: mount(2), "Creating a bind mount".
        mount_remount(&place, flags - MountFlags::REC, c"")
            .doing(|| format!("making {} read-only", place.display()))?;
    }
    Ok(())
}

/// A place inside the root: no `..`, no link on the way out.
fn below(root: &Path, target: &str) -> Result<std::path::PathBuf, Error> {
    let inside = Path::new(target.trim_start_matches('/'));
    if inside.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(Error::new(format!("a mount's target {target:?} leads out of the root")));
    }
    Ok(root.join(inside))
}

/// Takes off everything that is mounted there. Nothing mounted, or no such folder, is fine.
///
/// # Errors
/// The kernel refused for another reason.
pub fn unmount_all(target: &Path) -> Result<(), Error> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).doing(|| format!("unmounting {}", target.display())),
        }
    }
}
