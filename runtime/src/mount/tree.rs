//! Mount trees that are attached nowhere yet: made and given their attributes first, moved to their place last.
//!
//! Source: open_tree(2), fsopen(2), fsmount(2), move_mount(2); Linux 5.2.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{StatVfsMountFlags, fstatfs, fstatvfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};

use super::options::{Attributes, Depth, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, RDONLY, STRICTATIME};
use crate::sys::{self, MountAttr};

/// A clone of the mount that `path` (from `folder`, or `folder` itself if empty) lies on, with that path as its root.
///
/// # Errors
/// Those of open(2) · `EINVAL` the mount may not be cloned.
pub fn clone(folder: BorrowedFd<'_>, path: &CStr, depth: Depth) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if depth == Depth::WithAllBelow {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(folder, path, flags)
}

/// The attributes of the mount that a path or a tree lies on. Source: statvfs(3).
///
/// # Errors
/// Those of fstatvfs(2).
pub fn attributes(tree: BorrowedFd<'_>) -> Result<u64, Errno> {
    const WORDS: &[(StatVfsMountFlags, u64)] = &[
        (StatVfsMountFlags::RDONLY, RDONLY),
        (StatVfsMountFlags::NOSUID, NOSUID),
        (StatVfsMountFlags::NODEV, NODEV),
        (StatVfsMountFlags::NOEXEC, NOEXEC),
        (StatVfsMountFlags::NOATIME, NOATIME),
        (StatVfsMountFlags::NODIRATIME, NODIRATIME),
    ];
    let flags = fstatvfs(tree)?.f_flag;
    let mut attributes = WORDS.iter().filter(|(flag, _)| flags.contains(*flag)).fold(0, |all, (_, one)| all | one);
    if !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
        attributes |= STRICTATIME;
    }
    Ok(attributes)
}

/// Whether a path or a tree lies on a procfs. Source: statfs(2), `PROC_SUPER_MAGIC`.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_procfs(tree: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(tree)?.f_type as u64 == rustix::fs::PROC_SUPER_MAGIC as u64)
}

/// Lets the owners of a tree's files be seen through the mappings of a user namespace.
///
/// # Errors
/// `EINVAL` the file system cannot do that · `EPERM` it has mappings already.
///
/// Source: mount_setattr(2), "ID-mapped mounts"; Linux 5.12.
pub fn map_ids(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, depth: Depth) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let userns = user_namespace.as_raw_fd().cast_unsigned().into();
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, userns, ..MountAttr::default() };
    sys::mount_setattr(tree, &attr, depth == Depth::WithAllBelow)
}

/// Sets and clears attributes, if there are any.
///
/// # Errors
/// `EPERM` an attribute is locked.
pub fn apply(tree: BorrowedFd<'_>, attributes: Attributes, depth: Depth) -> Result<(), Errno> {
    if attributes.is_empty() {
        return Ok(());
    }
    let attr = MountAttr { set: attributes.set, clear: attributes.clear, ..MountAttr::default() };
    sys::mount_setattr(tree, &attr, depth == Depth::WithAllBelow)
}

/// Decides how mounts made here and elsewhere travel.
///
/// # Errors
/// `EINVAL` not a mount of this namespace.
pub fn propagate(tree: BorrowedFd<'_>, kind: u64, depth: Depth) -> Result<(), Errno> {
    let attr = MountAttr { propagation: kind, ..MountAttr::default() };
    sys::mount_setattr(tree, &attr, depth == Depth::WithAllBelow)
}

/// Moves a tree to the place `target`, which may be a folder or a file.
///
/// # Errors
/// `ENOTDIR` one is a folder and the other is not · `EINVAL` the place is not in this mount namespace.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags)
}

/// A file system without any option, attached nowhere.
///
/// # Errors
/// As [`FileSystem::make`].
pub fn bare(kind: &CStr, attributes: u64) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attributes as u32))
}

/// An empty folder that stays empty: read-only, and with room for one inode, its own.
///
/// # Errors
/// As [`FileSystem::make`].
pub fn nothing() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"nr_inodes", c"1")?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A file system that is to be made: all strings ready, so that the child only makes calls.
#[derive(Debug)]
pub struct FileSystem {
    pub kind: CString,
    pub source: CString,
    pub data: Vec<(CString, Option<CString>)>,
    pub attributes: u64,
}

impl FileSystem {
    /// Makes it in the caller's namespaces, attached nowhere; if `mode` is given, its root has that.
    ///
    /// # Errors
    /// `ENODEV` the kernel does not have it · `EINVAL` it does not know an option · `EPERM`.
    pub fn make(&self, mode: Option<u32>) -> Result<OwnedFd, Errno> {
        let context = fsopen(self.kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        if !self.source.is_empty() {
            fsconfig_set_string(context, c"source", self.source.as_c_str())?;
        }
        if let Some(mode) = mode {
            fsconfig_set_string(context, c"mode", octal(mode, &mut [0; 8]))?;
        }
        configure(context, &self.data)?;
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::from_bits_retain(self.attributes as u32);
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }
}

fn configure(context: BorrowedFd<'_>, data: &[(CString, Option<CString>)]) -> Result<(), Errno> {
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context, key.as_c_str())?,
        }
    }
    Ok(())
}

/// Changes the file system and the mount that `place` is the root of.
///
/// # Errors
/// `EINVAL` nothing is mounted right there, or the file system cannot change that.
pub fn remount(
    place: BorrowedFd<'_>,
    data: &[(CString, Option<CString>)],
    attributes: Attributes,
) -> Result<(), Errno> {
    if !data.is_empty() {
        let context = fspick(place, c"", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
        configure(context.as_fd(), data)?;
        fsconfig_reconfigure(context.as_fd())?;
    }
    apply(place, attributes, Depth::Alone)
}

/// Permission bits as text, without allocating.
fn octal(mode: u32, buffer: &mut [u8; 8]) -> &CStr {
    let mut at = buffer.len() - 1; // the last byte stays zero
    let mut left = mode & 0o7777;
    loop {
        at -= 1;
        buffer[at] = b'0' + (left & 7) as u8;
        left >>= 3;
        if left == 0 {
            break;
        }
    }
    CStr::from_bytes_until_nul(&buffer[at..]).unwrap_or(c"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_bits_are_written_as_chmod_reads_them() {
        for mode in [0, 0o7, 0o710, 0o755, 0o1777, 0o7777] {
            assert_eq!(octal(mode, &mut [0; 8]).to_str().unwrap(), format!("{mode:o}"));
        }
    }
}
