//! An image's root, to read its users and to copy its volumes from: mounted for a moment, and then only held by a handle.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountFlags;
use tare_proto::containerd::types::Mount;

use crate::cri::folders;
use crate::error::{Doing as _, Error, Result};

/// Reads of it go through [`Root::path`], by functions that stay within a root.
pub struct Root(OwnedFd);

impl Root {
    /// `place` is where it may be mounted for a moment.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn open(mounts: &[Mount], place: &Path) -> Result<Root> {
        let layers = layers(mounts);
        match layers.as_slice() {
            [] => Err(Error::Internal("looking into an image: it has no layers".into())),
            [one] => handle(one).map(Root),
            several => {
                folders::make(place, 0o700)?;
                let names: Vec<String> = several.iter().map(|layer| layer.display().to_string()).collect();
                let options = mounts.iter().flat_map(|mount| &mount.options);
                let more: String = options.filter(|option| *option == "userxattr").map(|o| format!(",{o}")).collect();
                let data = format!("lowerdir={}{more}", names.join(":"));
                let data = std::ffi::CString::new(data).map_err(|error| Error::Internal(error.to_string()))?;
                let doing = || format!("mounting an image at {}", place.display());
                rustix::mount::mount("overlay", place, "overlay", MountFlags::RDONLY, data.as_c_str()).doing(doing)?;
                let root = handle(place);
                folders::unmount(place)?; // the handle keeps it
                root.map(Root)
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn handle(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", path.display()))
}

/// The folders of the image's layers, top first, without the container's own.
fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for mount in mounts {
        if mount.r#type == "bind" {
            all.push(PathBuf::from(&mount.source));
        }
        let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        all.extend(lower.unwrap_or_default().split(':').filter(|path| !path.is_empty()).map(PathBuf::from));
    }
    all
}

/// Mounts an image, or a part of it, at a new place, where it stays.
///
/// # Errors
/// The part is not there, or lies outside.
pub fn mount_part(root: &Root, part: &str, target: &Path) -> Result<()> {
    use rustix::fs::{ResolveFlags, openat2};
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let doing = || format!("opening {part:?} in the image");
    let inside = if part.is_empty() { "." } else { part };
    if Path::new(inside).is_absolute() || Path::new(inside).components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::InvalidArgument(format!("image_sub_path {part:?} must be a path inside the image")));
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(&root.0, inside, flags, Mode::empty(), resolve).doing(doing)?;
    let is_folder = rustix::fs::fstat(&found).doing(doing)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    if let Some(above) = target.parent() {
        folders::make(above, 0o711)?;
    }
    if is_folder {
        folders::make(target, 0o755)?;
    } else {
        std::fs::File::create(target).doing(|| format!("making {}", target.display()))?;
    }
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&found, "", clone).doing(doing)?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| format!("mounting an image at {}", target.display()))
}
