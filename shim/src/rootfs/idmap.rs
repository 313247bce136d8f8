//! Layers whose files are to be owned by other ids: `uidmap=0:100000:65536,…` and `gidmap=…`, container:host:count.
//!
//! The kernel shows a mount through the mappings of a user namespace, so one is made that has them. An overlay cannot be
//! mapped itself, but is made of layers that are.
//!
//! Source: containerd `core/mount/mount_idmapped_linux.go`; mount_setattr(2), "ID-mapped mounts"; user_namespaces(7).

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::Error;
use crate::error::{Doing as _, Failed};
use crate::sys::{self, MountAttr};

/// In the bundle, where mapped layers are attached for as long as it takes to mount an overlay of them.
const LAYERS: &str = "layers";

/// Both mappings, in the form of /proc/PID/uid_map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    uids: String,
    gids: String,
}

impl IdMap {
    /// # Errors
    /// A part is not three numbers.
    pub fn parse(uids: &str, gids: &str) -> Result<IdMap, Error> {
        Ok(IdMap { uids: lines("uidmap", uids)?, gids: lines("gidmap", gids)? })
    }

    /// A user namespace that has these mappings.
    pub fn namespace(&self) -> Result<OwnedFd, Failed> {
        let pid = sys::in_new_user_namespace().doing(|| "making a user namespace".into())?;
        let made = self.fill(pid.as_raw_nonzero().get());
        sys::end(pid).doing(|| "ending the user namespace's first process".into())?;
        made
    }

    fn fill(&self, pid: i32) -> Result<OwnedFd, Failed> {
        for (file, map) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, map).doing(|| format!("writing {map:?} to {path}"))?;
        }
        let path = format!("/proc/{pid}/ns/user");
        Ok(fs::File::open(&path).doing(|| format!("opening {path}"))?.into())
    }
}

fn lines(option: &str, list: &str) -> Result<String, Error> {
    let line = |part: &str| {
        let numbers: Vec<u32> = part.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        <[u32; 3]>::try_from(numbers).ok().map(|[inside, outside, count]| format!("{inside} {outside} {count}\n"))
    };
    list.split(',').map(line).collect::<Option<_>>().ok_or_else(|| Error::Map(format!("{option}={list}")))
}

/// A copy of what is mounted at `source`, with its files' owners seen through `namespace`.
fn mapped(source: &Path, namespace: &OwnedFd, set: u64, depth: OpenTreeFlags) -> Result<OwnedFd, Failed> {
    let doing = || format!("mapping the ids of {}", source.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | depth;
    let tree = open_tree(CWD, source, flags).doing(doing)?;
    let attr = MountAttr::with_ids_of(namespace.as_fd(), set);
    sys::mount_setattr(tree.as_fd(), &attr, depth.contains(OpenTreeFlags::AT_RECURSIVE)).doing(doing)?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<(), Failed> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| format!("attaching {}", target.display()))
}

/// Maps what was just mounted at `target`.
pub fn map_in_place(target: &Path, ids: &IdMap) -> Result<(), Failed> {
    let tree = mapped(target, &ids.namespace()?, 0, OpenTreeFlags::AT_RECURSIVE)?;
    unmount(target, UnmountFlags::DETACH).doing(|| format!("unmounting {}", target.display()))?;
    attach(&tree, target)
}

/// An overlay's layers, mapped; detached again when dropped, by when the overlay has copies of its own.
pub struct Layers {
    folder: PathBuf,
    attached: Vec<PathBuf>,
}

impl Layers {
    /// # Errors
    /// A layer is not there, or its file system cannot be mapped.
    pub fn map(lower: &str, ids: &IdMap, bundle: &Path) -> Result<Layers, Failed> {
        const MOUNT_ATTR_RDONLY: u64 = 1;
        let namespace = ids.namespace()?;
        let mut layers = Layers { folder: bundle.join(LAYERS), attached: Vec::new() };
        for layer in lower.split(':') {
            let target = layers.folder.join(layers.attached.len().to_string());
            fs::create_dir_all(&target).doing(|| format!("making {}", target.display()))?;
            attach(&mapped(Path::new(layer), &namespace, MOUNT_ATTR_RDONLY, OpenTreeFlags::empty())?, &target)?;
            layers.attached.push(target);
        }
        Ok(layers)
    }

    /// The overlay's option.
    pub fn option(&self) -> String {
        let paths: Vec<String> = self.attached.iter().map(|path| path.display().to_string()).collect();
        format!("lowerdir={}", paths.join(":"))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.folder) {
            crate::log::warn(&error.to_string());
        }
    }
}

/// Takes down what a shim that was killed may have left of a bundle's layers.
///
/// # Errors
/// The kernel refused.
pub fn detach_layers(bundle: &Path) -> Result<(), Failed> {
    detach(&bundle.join(LAYERS))
}

fn detach(folder: &Path) -> Result<(), Failed> {
    if !folder.exists() {
        return Ok(());
    }
    super::unmount_all(folder)?;
    // Folder by folder: what might still be mounted there is not ours to empty.
    let remove = || -> std::io::Result<()> {
        fs::read_dir(folder)?.try_for_each(|entry| fs::remove_dir(entry?.path()))?;
        fs::remove_dir(folder)
    };
    remove().doing(|| format!("removing {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_three_numbers_and_a_list_of_them_is_lines() {
        let map = IdMap::parse("0:100000:65536,65536:5:1", "0:1:2").unwrap();
        assert_eq!((map.uids.as_str(), map.gids.as_str()), ("0 100000 65536\n65536 5 1\n", "0 1 2\n"));
        for bad in ["", "0:1", "0:1:2:3", "0:-1:2", "0:1:2,", "a:b:c"] {
            let error = IdMap::parse("0:1:2", bad).unwrap_err().to_string();
            assert_eq!(error, format!("rootfs option \"gidmap={bad}\" is not container:host:count, …"));
        }
    }
}
