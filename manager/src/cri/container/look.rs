//! An image's root, to read its users, to copy its volumes from, or to mount parts of it elsewhere.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountFlags;
use tare_proto::containerd::types::Mount;

use super::mapped;
use crate::cri::folders;
use crate::error::{Doing as _, Error, Result};

/// Reads of it go through [`Root::path`], by functions that stay within a root.
pub struct Root {
    handle: OwnedFd,
    /// Where it is mounted meanwhile, if it had to be: only from there can parts of it be mounted elsewhere.
    _mounted: Mounted,
}

impl Root {
    /// `place` is where it may be mounted meanwhile. With a user namespace its files are shown with the owners that they
    /// have there.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn open(mounts: &[Mount], place: &Path, namespace: Option<&OwnedFd>) -> Result<Root> {
        let layers = layers(mounts);
        let mut mounted = Mounted::default();
        let options = mounts.iter().flat_map(|mount| &mount.options);
        let more: String = options.filter(|option| *option == "userxattr").map(|o| format!(",{o}")).collect();
        let handle = match (layers.as_slice(), namespace) {
            ([], _) => return Err(Error::Internal("looking into an image: it has no layers".into())),
            ([one], None) => handle(one)?,
            ([one], Some(namespace)) => {
                mounted.make(place)?;
                mapped::mount(one, place, namespace.as_fd())?;
                handle(place)?
            }
            (several, None) => {
                mounted.make(place)?;
                overlay(several, &more, place)?;
                handle(place)?
            }
            (several, Some(namespace)) => {
                // Overlayfs takes its layers from mounts in our namespace, and keeps them by itself.
                let mut lower = Mounted::default();
                for (number, layer) in several.iter().enumerate() {
                    let below = place.with_file_name(format!("{}.{number}", name(place)));
                    lower.make(&below)?;
                    mapped::mount(layer, &below, namespace.as_fd())?;
                }
                mounted.make(place)?;
                overlay(&lower.0, &more, place)?;
                handle(place)?
            }
        };
        Ok(Root { handle, _mounted: mounted })
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }
}

/// Folders that something is mounted at for a while.
#[derive(Default)]
struct Mounted(Vec<PathBuf>);

impl Mounted {
    fn make(&mut self, place: &Path) -> Result<()> {
        folders::make(place, 0o700)?;
        self.0.push(place.to_owned());
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            let gone = folders::unmount(place)
                .and_then(|()| std::fs::remove_dir(place).doing(|| format!("removing {}", place.display())));
            if let Err(error) = gone {
                tracing::warn!("{error}"); // the next start tries again
            }
        }
    }
}

fn name(place: &Path) -> String {
    place.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn overlay(layers: &[PathBuf], more: &str, place: &Path) -> Result<()> {
    let names: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let data = std::ffi::CString::new(format!("lowerdir={}{more}", names.join(":")));
    let data = data.map_err(|error| Error::Internal(error.to_string()))?;
    rustix::mount::mount("overlay", place, "overlay", MountFlags::RDONLY, data.as_c_str())
        .doing(|| format!("mounting an image at {}", place.display()))
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
    let found = openat2(&root.handle, inside, flags, Mode::empty(), resolve).doing(doing)?;
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
