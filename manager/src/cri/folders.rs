//! Where CRI keeps files.
//!
//! ```text
//! <root>/io.containerd.grpc.v1.cri/sandboxes/<id>/     hostname, hosts, resolv.conf
//! <root>/io.containerd.grpc.v1.cri/containers/<id>/    volumes/<n>: folders for the image's volumes
//! <state>/io.containerd.grpc.v1.cri/sandboxes/<id>/    shm: mounted, the pod's /dev/shm
//! <state>/io.containerd.grpc.v1.cri/containers/<id>/   stdin: a fifo; images/<n>: images mounted as volumes
//! <state>/io.containerd.grpc.v1.cri/look/              an image's root, for a moment
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::spec::Files;
use crate::error::{Doing as _, Error, Result};

/// As containerd's, for those who look for it there.
const FOLDER: &str = "io.containerd.grpc.v1.cri";

#[derive(Clone, Debug)]
pub struct Folders {
    root: PathBuf,
    state: PathBuf,
}

impl Folders {
    pub fn new(root: &Path, state: &Path) -> Folders {
        Folders { root: root.join(FOLDER), state: state.join(FOLDER) }
    }

    /// The two of them: what outlives a reboot, and what does not.
    pub fn both(&self) -> [&Path; 2] {
        [&self.root, &self.state]
    }

    /// The pod's files; below the first folder they outlive a reboot.
    pub fn files(&self, pod: &str) -> Files {
        let (kept, mounted) = (self.root.join("sandboxes").join(pod), self.state.join("sandboxes").join(pod));
        Files {
            hostname: kept.join("hostname"),
            hosts: kept.join("hosts"),
            resolv_conf: kept.join("resolv.conf"),
            shm: mounted.join("shm"),
        }
    }

    pub fn of_pod(&self, pod: &str) -> [PathBuf; 2] {
        [self.root.join("sandboxes").join(pod), self.state.join("sandboxes").join(pod)]
    }

    pub fn of_container(&self, container: &str) -> [PathBuf; 2] {
        [self.root.join("containers").join(container), self.state.join("containers").join(container)]
    }

    pub fn look(&self) -> PathBuf {
        self.state.join("look")
    }

    /// Ids that have a folder, of pods or containers.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn found(&self, kind: &str) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for place in [self.root.join(kind), self.state.join(kind)] {
            let entries = match fs::read_dir(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.doing(|| format!("reading {}", place.display()))?,
            };
            for entry in entries {
                let entry = entry.doing(|| format!("reading {}", place.display()))?;
                ids.extend(entry.file_name().into_string().ok());
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }
}

/// # Errors
/// It cannot be made.
pub fn make(folder: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(folder).doing(|| format!("making {}", folder.display()))
}

/// Removes a folder once nothing is mounted in it: what lies below a mount is somebody else's.
///
/// # Errors
/// Something cannot be unmounted or removed. One that is gone is no error.
pub fn remove(folder: &Path) -> Result<()> {
    unmount_below(folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", folder.display()), &error))
        }
        _ => Ok(()),
    }
}

/// # Errors
/// The table of mounts cannot be read, or something cannot be unmounted.
pub fn unmount_below(folder: &Path) -> Result<()> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table = fs::read_to_string(TABLE).doing(|| format!("reading {TABLE}"))?;
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    for place in places.filter(|place| place.starts_with(folder)) {
        unmount(&place)?;
    }
    Ok(())
}

/// Takes away what is mounted at a place, all of it. None is no error.
///
/// # Errors
/// It cannot be unmounted.
pub fn unmount(place: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()), // not a mount point, or not there: umount(2)
            Err(errno) => return Err(errno).doing(|| format!("unmounting {}", place.display())),
        }
    }
}
