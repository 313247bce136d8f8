//! Mount trees that are attached nowhere yet: made and given their attributes first, moved to their place last.
//!
//! Source: open_tree(2), fsopen(2), fsmount(2), move_mount(2); Linux 5.2.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::{Attributes, Depth, Options};
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

/// Gives a tree the attributes and the propagation that its options ask for.
///
/// # Errors
/// `EPERM` an attribute is locked.
pub fn adjust(tree: BorrowedFd<'_>, options: &Options) -> Result<(), Errno> {
    apply(tree, options.here, Depth::Alone)?;
    apply(tree, options.below, Depth::WithAllBelow)
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
    /// Makes it in the caller's namespaces, attached nowhere.
    ///
    /// # Errors
    /// `ENODEV` the kernel does not have it · `EINVAL` it does not know an option · `EPERM`.
    pub fn make(&self) -> Result<OwnedFd, Errno> {
        let context = fsopen(self.kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        if !self.source.is_empty() {
            fsconfig_set_string(context, c"source", self.source.as_c_str())?;
        }
        for (key, value) in &self.data {
            match value {
                Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str())?,
                None => fsconfig_set_flag(context, key.as_c_str())?,
            }
        }
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::from_bits_retain(self.attributes as u32);
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }
}
