//! The container's root: attached, filled, protected, and made `/`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat, fstat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::report::{Step, Stuck, at, nth};
use crate::mount::options::{Attributes, Depth, RDONLY};
use crate::mount::root::{self, Missing};
use crate::mount::tree;
use crate::plan::{Filesystem, Mount, Node, What};

/// Cuts or loosens the ties between the host's mounts and ours, then attaches the root.
pub fn attach_root(files: &Filesystem) -> Result<(), Stuck> {
    let (kind, depth) = files.host_propagation;
    let mut flags = MountPropagationFlags::from_bits_retain(kind as u32);
    if depth == Depth::WithAllBelow {
        flags |= MountPropagationFlags::REC;
    }
    at(Step::HostPropagation, mount_change(c"/", flags))?;
    let place = at(Step::Root, root::open_host_folder(&files.place))?;
    at(Step::Root, tree::attach(files.root.as_fd(), place.as_fd()))
}

/// All mounts, in the order of the specification.
pub fn mount_all(files: &Filesystem) -> Result<(), Stuck> {
    for (index, mount) in (0u16..).zip(&files.mounts) {
        nth(Step::Mount, index, make(mount, files.root.as_fd()))?;
    }
    Ok(())
}

fn make(mount: &Mount, root: BorrowedFd<'_>) -> Result<(), Errno> {
    if let What::Link(to) = &mount.what {
        let folder = mount.target.parent(root)?;
        return symlinkat(to.as_c_str(), &folder, mount.target.name());
    }
    let place = if mount.ordinary { ordinary_folder(mount, root)? } else { mount.target.reach(root, mount.missing)? };
    let made;
    let tree = match &mount.what {
        What::Tree(tree) => tree,
        What::FileSystem(filesystem) => {
            made = filesystem.make()?;
            &made
        }
        What::Attributes(attributes) => return tree::apply(place.as_fd(), *attributes, Depth::Alone),
        What::Link(_) => return Err(Errno::INVAL),
    };
    tree::attach(tree.as_fd(), place.as_fd())?;
    for (kind, depth) in &mount.propagation {
        tree::propagate(tree.as_fd(), *kind, *depth)?;
    }
    Ok(())
}

/// A folder reached without any link: a container that can make /proc a link elsewhere could feign what we write there.
fn ordinary_folder(mount: &Mount, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let reached = mount.target.reach(root, mount.missing)?;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    drop(reached);
    rustix::fs::openat2(root, mount.target.path(), flags, Mode::empty(), resolve)
}

/// Device nodes and the links beside them.
pub fn make_devices(files: &Filesystem) -> Result<(), Stuck> {
    let before = rustix::process::umask(Mode::empty()); // modes are meant as they are written
    for (index, node) in (0u16..).zip(&files.nodes) {
        nth(Step::Device, index, make_node(node, files.root.as_fd()))?;
    }
    for (index, (target, to)) in (0u16..).zip(&files.links) {
        let made = target.parent(files.root.as_fd()).and_then(|folder| {
            match symlinkat(to.as_c_str(), &folder, target.name()) {
                Err(Errno::EXIST) => Ok(()), // the image brought one along
                answer => answer,
            }
        });
        nth(Step::Link, index, made)?;
    }
    rustix::process::umask(before);
    Ok(())
}

fn make_node(node: &Node, root: BorrowedFd<'_>) -> Result<(), Errno> {
    if let Some(bound) = &node.bound {
        let place = node.target.reach(root, Missing::File)?;
        return tree::attach(bound.as_fd(), place.as_fd());
    }
    let folder = node.target.parent(root)?;
    match mknodat(&folder, node.target.name(), node.file_type, Mode::from_raw_mode(node.mode), node.device) {
        Ok(()) => {}
        Err(Errno::EXIST) => return is_the_same(node, root),
        Err(errno) => return Err(errno),
    }
    if node.uid != 0 || node.gid != 0 {
        let (uid, gid) = (rustix::process::Uid::from_raw(node.uid), rustix::process::Gid::from_raw(node.gid));
        chownat(&folder, node.target.name(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// A node that the image brought along is taken if it is the one that was asked for.
fn is_the_same(node: &Node, root: BorrowedFd<'_>) -> Result<(), Errno> {
    let there = fstat(root::open(root, node.target.path(), OFlags::PATH | OFlags::NOFOLLOW)?)?;
    let same = FileType::from_raw_mode(there.st_mode) == node.file_type && there.st_rdev == node.device;
    if same { Ok(()) } else { Err(Errno::EXIST) }
}

/// Masks and read-only paths. What does not exist needs no protection.
pub fn protect(files: &Filesystem) -> Result<(), Stuck> {
    let root = files.root.as_fd();
    for (index, target) in (0u16..).zip(&files.read_only) {
        nth(Step::ReadOnly, index, make_readonly(target, root))?;
    }
    if files.masked.is_empty() {
        return Ok(());
    }
    let null = at(Step::Null, null_device())?;
    let mut empty: Option<OwnedFd> = None;
    for (index, target) in (0u16..).zip(&files.masked) {
        nth(Step::Masked, index, mask(target, root, null.as_fd(), &mut empty))?;
    }
    Ok(())
}

fn make_readonly(target: &root::Target, root: BorrowedFd<'_>) -> Result<(), Errno> {
    let place = match target.reach(root, Missing::Refused) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place?,
    };
    let copy = tree::clone(place.as_fd(), c"", Depth::WithAllBelow)?;
    tree::apply(copy.as_fd(), Attributes { set: RDONLY, clear: 0 }, Depth::Alone)?;
    tree::attach(copy.as_fd(), place.as_fd())
}

/// The host's null device, opened by us and looked at: the container's own /dev/null may be anything (CVE-2025-31133).
fn null_device() -> Result<OwnedFd, Errno> {
    let null = openat(rustix::fs::CWD, c"/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let there = fstat(&null)?;
    let genuine = FileType::from_raw_mode(there.st_mode) == FileType::CharacterDevice
        && there.st_rdev == rustix::fs::makedev(1, 3);
    if genuine { Ok(null) } else { Err(Errno::NODEV) }
}

/// A file is covered by the null device, a folder by an empty read-only one, which is made once.
fn mask(
    target: &root::Target,
    root: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
    empty: &mut Option<OwnedFd>,
) -> Result<(), Errno> {
    let place = match target.reach(root, Missing::Refused) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place?,
    };
    let folder = FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Directory;
    let cover = match (folder, empty.as_ref()) {
        (false, _) => tree::clone(null, c"", Depth::Alone)?,
        (true, Some(empty)) => tree::clone(empty.as_fd(), c"", Depth::Alone)?,
        (true, None) => tree::nothing()?,
    };
    tree::attach(cover.as_fd(), place.as_fd())?;
    if folder && empty.is_none() {
        *empty = Some(cover);
    }
    Ok(())
}

/// Makes the root `/` and lets go of everything else.
pub fn change_root(files: &Filesystem) -> Result<(), Stuck> {
    at(Step::PivotRoot, rustix::process::fchdir(&files.root))?;
    if files.no_pivot {
        at(Step::PivotRoot, rustix::mount::mount_move(c".", c"/"))?;
        at(Step::PivotRoot, rustix::process::chroot(c"."))?;
    } else {
        // The old root comes to lie on the new one and is taken off again: pivot_root(2), "pivot_root(".", ".")".
        at(Step::PivotRoot, rustix::process::pivot_root(c".", c"."))?;
        at(Step::PivotRoot, unmount(c".", UnmountFlags::DETACH))?;
    }
    at(Step::PivotRoot, rustix::process::chdir(c"/"))?;
    if let Some((kind, depth)) = files.root_propagation {
        at(Step::RootPropagation, tree::propagate(files.root.as_fd(), kind, depth))?;
    }
    Ok(())
}

pub fn make_root_readonly(files: &Filesystem) -> Result<(), Errno> {
    tree::apply(files.root.as_fd(), Attributes { set: RDONLY, clear: 0 }, Depth::Alone)
}
