//! What a snapshot's mounts show, as a folder that is mounted nowhere: other processes, and the next start of this one,
//! never meet it.

#![allow(unsafe_code)] // unshare(2)

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tare_proto::containerd::types::Mount;

use crate::error::{Doing as _, Error, Result};

/// mount(2) takes a page of options, with the NUL at its end.
const LONGEST_OPTIONS: usize = 4095;

/// A snapshot's mounts, read.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder as it is.
    Folder { path: PathBuf, read_only: bool },
    Overlay {
        upper: Option<PathBuf>,
        /// Top first.
        lower: Vec<PathBuf>,
        /// Whether its attributes are the user's and not the trusted ones.
        user: bool,
    },
}

impl Source {
    /// # Errors
    /// `Unimplemented`: not one mount, or of another kind.
    pub fn of(mounts: &[Mount]) -> Result<Source> {
        let [mount] = mounts else {
            return Err(Error::Unimplemented(format!("a snapshot of {} mounts: one is possible", mounts.len())));
        };
        if !mount.target.is_empty() {
            return Err(Error::Unimplemented(format!("a mount with target {:?}", mount.target)));
        }
        let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        let flag = |name: &str| mount.options.iter().any(|option| option == name);
        match mount.r#type.as_str() {
            "overlay" => {
                let lower = option("lowerdir").unwrap_or_default().split(':').filter(|path| !path.is_empty());
                let lower: Vec<PathBuf> = lower.map(PathBuf::from).collect();
                if lower.is_empty() {
                    return Err(Error::InvalidArgument("an overlay without lowerdir".into()));
                }
                Ok(Source::Overlay { upper: option("upperdir").map(PathBuf::from), lower, user: flag("userxattr") })
            }
            "bind" if mount.source.is_empty() => Err(Error::InvalidArgument("a bind mount without source".into())),
            "bind" => Ok(Source::Folder { path: mount.source.clone().into(), read_only: flag("ro") }),
            "" if flag("bind") || flag("rbind") => {
                Ok(Source::Folder { path: mount.source.clone().into(), read_only: flag("ro") })
            }
            other => Err(Error::Unimplemented(format!("a snapshot whose mount is of type {other:?}"))),
        }
    }

    /// The folders that it is put together from, top first.
    fn layers(&self) -> Vec<&Path> {
        match self {
            Source::Folder { path, .. } => vec![path],
            Source::Overlay { upper, lower, .. } => upper.iter().chain(lower).map(PathBuf::as_path).collect(),
        }
    }

    /// What the topmost folder has been written over, if that is what `below` shows.
    pub fn upper_on(&self, below: &Source) -> Option<&Path> {
        let Source::Overlay { upper: Some(upper), lower, .. } = self else { return None };
        (below.layers() == lower.iter().map(PathBuf::as_path).collect::<Vec<_>>()).then_some(upper)
    }
}

/// Opens what the sources show. Nothing can be written there, and no layer is in use by it.
///
/// `place` is any folder: for a moment, and for one thread alone, it is covered.
///
/// # Errors
/// A folder is missing, or the kernel refuses the mount.
pub fn open(sources: &[&Source], place: &Path) -> Result<Vec<OwnedFd>> {
    alone(|| sources.iter().map(|source| shown(source, place)).collect())
}

fn shown(source: &Source, place: &Path) -> Result<OwnedFd> {
    let folder = |path: &Path| {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("opening {}", path.display()))
    };
    let layers = source.layers();
    let (user, layers) = match (source, layers.as_slice()) {
        (_, [only]) => return folder(only), // overlayfs wants two
        (Source::Overlay { user, .. }, layers) => (*user, layers),
        (Source::Folder { path, .. }, _) => return folder(path),
    };
    let doing = || format!("mounting an overlay of {} layers", layers.len());
    let options = options(layers, user)?;
    mount("overlay", place, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).doing(doing)?;
    let opened = folder(place);
    unmount(place, UnmountFlags::DETACH).doing(doing)?;
    opened
}

/// The options of a read-only overlay: an upper folder is the topmost of the lower ones. Where the paths are too long for
/// mount(2), they are said from the folder that all lie in, which becomes this thread's.
fn options(layers: &[&Path], user: bool) -> Result<CString> {
    let write = |base: Option<&Path>| {
        let below = |path: &&Path| {
            base.and_then(|base| path.strip_prefix(base).ok()).unwrap_or(path).to_string_lossy().into_owned()
        };
        let lower: Vec<String> = layers.iter().map(below).collect();
        format!("lowerdir={}{}", lower.join(":"), if user { ",userxattr" } else { "" })
    };
    let mut text = write(None);
    if text.len() > LONGEST_OPTIONS {
        let common = layers[0].ancestors().find(|base| layers.iter().all(|layer| layer.starts_with(base)));
        if let Some(base) = common {
            rustix::process::chdir(base).doing(|| format!("entering {}", base.display()))?;
            text = write(Some(base));
        }
    }
    CString::new(text).map_err(|_| Error::InvalidArgument("a layer's path holds a NUL".into()))
}

/// Runs `work` on a thread whose mounts, and whose current folder, are its own; they go with it.
fn alone<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let alone = || {
        let doing = || "making a mount namespace".to_owned();
        // SAFETY: NEWNS leaves the table of open files alone, so no handle changes its meaning.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(doing)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).doing(doing)?;
        work()
    };
    let ended = std::thread::scope(|scope| scope.spawn(alone).join());
    ended.map_err(|_| Error::Internal("a thread with mounts of its own panicked".into()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { r#type: kind.into(), source: source.into(), target: String::new(), options }
    }

    #[test]
    fn an_upper_folder_is_known_by_what_lies_below_it() {
        let overlay =
            Source::of(&[mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"])]).unwrap();
        let same = Source::of(&[mount("overlay", "overlay", &["lowerdir=/b:/a", "index=off"])]).unwrap();
        let other = Source::of(&[mount("bind", "/a", &["ro", "rbind"])]).unwrap();
        assert_eq!(overlay.upper_on(&same), Some(Path::new("/u")));
        assert_eq!(overlay.upper_on(&other), None);
        assert_eq!(same.upper_on(&other), None);
    }

    #[test]
    fn what_cannot_be_seen_is_refused_by_name() {
        let mut with_target = mount("bind", "/f", &["ro"]);
        with_target.target = "sub".into();
        for (bad, word) in [
            (vec![], "0 mounts"),
            (vec![mount("erofs", "/x", &[])], "erofs"),
            (vec![mount("overlay", "o", &["upperdir=/u"])], "lowerdir"),
            (vec![with_target], "target"),
        ] {
            let error = Source::of(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    /// As many layers as the kernel may be given: their paths alone are more than a page.
    #[test]
    fn more_layers_are_seen_at_once_than_mount_takes_by_their_whole_paths() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let base = dir.path().join("a-folder-with-a-rather-long-name-so-that-few-fit");
        let lower: Vec<PathBuf> = (0..60).map(|n| base.join(n.to_string()).join("fs")).collect();
        for (n, layer) in lower.iter().enumerate() {
            std::fs::create_dir_all(layer).unwrap();
            std::fs::write(layer.join(n.to_string()), "").unwrap();
        }
        let source = Source::Overlay { upper: None, lower, user: false };
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let opened = open(&[&source], dir.path()).unwrap();
        let names = rustix::fs::Dir::read_from(
            openat(&opened[0], c".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap(),
        )
        .unwrap();
        assert_eq!(names.count(), 60 + 2);
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
