//! The container's root: attached, filled, protected, and made `/`.

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, chownat, fstat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::copy_up;
use super::report::{Step, Stuck, at, nth};
use crate::mount::make;
use crate::mount::options::{Attributes, Depth, RDONLY};
use crate::mount::root::{self, Missing, Parents};
use crate::mount::tree;
use crate::plan::{Chroot, Filesystem, Inside, Mount, Node, Tmpfs, What};

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

/// Some of the mounts, in the order of the specification.
pub fn mount(files: &Filesystem, which: Range<usize>) -> Result<(), Stuck> {
    for (index, mount) in (0u16..).zip(&files.mounts).skip(which.start).take(which.len()) {
        make(mount, index, files.root.as_fd())?;
    }
    Ok(())
}

fn make(mount: &Mount, index: u16, root: BorrowedFd<'_>) -> Result<(), Stuck> {
    let target = &mount.target;
    let reached = |missing| nth(Step::MountPoint, index, reach(mount, missing, root));
    let (place, tree) = match &mount.what {
        What::Link(to) => {
            let folder = nth(Step::MountPoint, index, target.parent(root))?;
            return nth(Step::Mount, index, symlinkat(to.as_c_str(), &folder, target.name()));
        }
        What::Remount(data, attributes) => {
            let (place, _) = reached(Missing::Refused)?;
            return nth(Step::Mount, index, tree::remount(place.as_fd(), data, *attributes));
        }
        What::Tree(tree) => {
            let (place, _) = reached(mount.missing)?;
            nth(Step::Mount, index, tree::attach(tree.as_fd(), place.as_fd()))?;
            return nth(Step::Mount, index, propagate(mount, tree.as_fd()));
        }
        What::Inside(inside) => {
            let (tree, missing) = nth(Step::Mount, index, clone_inside(inside, root))?;
            (reached(missing)?.0, tree)
        }
        // A container that can make /proc a link elsewhere could feign what we write there.
        What::FileSystem(files) if mount.ordinary => {
            let place = nth(Step::MountPoint, index, target.reach_ordinary(root))?;
            (place, nth(Step::Mount, index, files.make(None))?)
        }
        What::FileSystem(files) => (reached(mount.missing)?.0, nth(Step::Mount, index, files.make(None))?),
        What::Tmpfs(tmpfs) => {
            let (place, made) = reached(mount.missing)?;
            let tree = nth(Step::Mount, index, make_tmpfs(tmpfs, place.as_fd(), made))?;
            if tmpfs.copy_up && !made {
                nth(Step::CopyUp, index, copy_up::copy(place.as_fd(), tree.as_fd()))?;
            }
            (place, tree)
        }
    };
    nth(Step::Mount, index, tree::attach(tree.as_fd(), place.as_fd()))?;
    nth(Step::Mount, index, propagate(mount, tree.as_fd()))?;
    if let What::Tmpfs(Tmpfs { later: Some(later), .. }) = &mount.what {
        let _ = later.set(tree); // each mount is made once
    }
    Ok(())
}

/// The place of a mount, which no link may lead into /proc: whoever reads there believes the kernel (CVE-2019-16884).
fn reach(mount: &Mount, missing: Missing, root: BorrowedFd<'_>) -> Result<(OwnedFd, bool), Errno> {
    let (place, made) = mount.target.reach(root, missing)?;
    if !mount.in_procfs && tree::is_procfs(place.as_fd())? {
        return Err(Errno::PERM);
    }
    Ok((place, made))
}

fn propagate(mount: &Mount, tree: BorrowedFd<'_>) -> Result<(), Errno> {
    mount.propagation.iter().try_for_each(|(kind, depth)| tree::propagate(tree, *kind, *depth))
}

/// A bind mount of what lies in the root, and what it needs to lie on.
fn clone_inside(inside: &Inside, root: BorrowedFd<'_>) -> Result<(OwnedFd, Missing), Errno> {
    let source = root::open(root, &inside.source, OFlags::PATH)?;
    let kind = FileType::from_raw_mode(fstat(&source)?.st_mode);
    let tree = tree::clone(source.as_fd(), c"", inside.depth)?;
    let attributes = inside.options.for_bind(tree::attributes(source.as_fd())?, inside.user_namespace)?;
    tree::apply(tree.as_fd(), attributes, Depth::Alone)?;
    tree::apply(tree.as_fd(), inside.options.below, Depth::WithAllBelow)?;
    if let Some((namespace, depth)) = &inside.id_map {
        tree::map_ids(tree.as_fd(), namespace.as_fd(), *depth)?;
    }
    Ok((tree, if kind == FileType::Directory { Missing::Folder } else { Missing::File }))
}

fn make_tmpfs(tmpfs: &Tmpfs, place: BorrowedFd<'_>, made: bool) -> Result<OwnedFd, Errno> {
    let mode = if tmpfs.mode_of_target && !made { Some(fstat(place)?.st_mode & 0o7777) } else { None };
    tmpfs.files.make(mode)
}

/// What could not be read-only while it was filled.
pub fn finish_mounts(files: &Filesystem) -> Result<(), Stuck> {
    for (index, mount) in (0u16..).zip(&files.mounts) {
        if let What::Tmpfs(Tmpfs { later: Some(later), .. }) = &mount.what
            && let Some(tree) = later.get()
        {
            let read_only = Attributes { set: RDONLY, clear: 0 };
            nth(Step::Mount, index, tree::apply(tree.as_fd(), read_only, Depth::Alone))?;
        }
    }
    Ok(())
}

/// Device nodes and the links beside them.
pub fn make_devices(files: &Filesystem) -> Result<(), Stuck> {
    let before = rustix::process::umask(Mode::empty()); // modes are meant as they are written
    let mut folders = Parents::below(files.root.as_fd());
    for (index, node) in (0u16..).zip(&files.nodes) {
        nth(Step::Device, index, make_node(node, files.root.as_fd(), &mut folders))?;
    }
    for (index, (target, to)) in (0u16..).zip(&files.links) {
        let made = folders.of(target).and_then(|folder| {
            match symlinkat(to.as_c_str(), folder, target.name()) {
                Err(Errno::EXIST) => Ok(()), // the image brought one along
                answer => answer,
            }
        });
        nth(Step::Link, index, made)?;
    }
    rustix::process::umask(before);
    Ok(())
}

fn make_node<'a>(node: &'a Node, root: BorrowedFd<'_>, folders: &mut Parents<'a>) -> Result<(), Errno> {
    if let Some(bound) = &node.bound {
        let (place, _) = node.target.reach(root, Missing::File)?;
        return tree::attach(bound.as_fd(), place.as_fd());
    }
    let folder = folders.of(&node.target)?;
    match mknodat(folder, node.target.name(), node.file_type, Mode::from_raw_mode(node.mode), node.device) {
        Ok(()) => {}
        Err(Errno::EXIST) => return is_the_same(node, root),
        Err(errno) => return Err(errno),
    }
    if node.uid != 0 || node.gid != 0 {
        let (uid, gid) = (rustix::process::Uid::from_raw(node.uid), rustix::process::Gid::from_raw(node.gid));
        chownat(folder, node.target.name(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
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
    let (place, _) = match target.reach(root, Missing::Refused) {
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
    let (place, _) = match target.reach(root, Missing::Refused) {
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
    if let Some(bare) = &files.no_pivot {
        for place in bare {
            at(Step::PivotRoot, take_away(place))?;
        }
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

/// A working folder that the image does not have is made, as runc does. Where it cannot be, changing to it says why.
pub fn make_working_folder(files: &Filesystem, cwd: &CStr) {
    if rustix::fs::accessat(CWD, cwd, Access::EXISTS, AtFlags::empty()) == Err(Errno::NOENT) {
        let _ = make::path(files.root.as_fd(), cwd, Missing::Folder);
    }
}

/// Makes a folder of a mount namespace that is not the container's own `/`.
pub fn chroot(root: &Chroot) -> Result<(), Errno> {
    match root {
        Chroot::Here(root) => rustix::process::fchdir(root)?,
        Chroot::There(path) => match rustix::process::chdir(path.as_c_str()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return rustix::process::chdir(c"/"),
            Err(errno) => return Err(errno),
        },
    }
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

/// A mount that the user namespace may not take away is covered instead.
fn take_away(place: &CStr) -> Result<(), Errno> {
    match unmount(place, UnmountFlags::DETACH) {
        Err(Errno::INVAL | Errno::PERM) => {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
            rustix::mount::mount(c"tmpfs", place, c"tmpfs", flags, c"nr_inodes=1")
        }
        answer => answer,
    }
}

pub fn make_root_readonly(files: &Filesystem) -> Result<(), Errno> {
    tree::apply(files.root.as_fd(), Attributes { set: RDONLY, clear: 0 }, Depth::Alone)
}
