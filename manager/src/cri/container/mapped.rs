//! A folder shown with other owners than its files have, as a user namespace has them.
//!
//! Source: mount_setattr(2), "ID-mapped mounts".
#![allow(unsafe_code)] // the one call that rustix has no door to

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::error::{Doing as _, Result};

/// Mounts what is at `source` at `place`, for reading only.
///
/// # Errors
/// The file system there cannot do it, or the kernel's.
pub fn mount(source: &Path, place: &Path, namespace: BorrowedFd<'_>) -> Result<()> {
    let doing = || format!("mounting {} at {} with its owners mapped", source.display(), place.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).doing(doing)?;
    map(&tree, namespace).doing(doing)?;
    move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
}

fn map(tree: &OwnedFd, namespace: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).expect("descriptors are not negative"),
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is an empty string with its zero, the attributes are of the size passed, and both live through it.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    if set == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
