//! A task's folder: what its shim and runtime find on disk, and what a restarted daemon finds of its tasks.
//!
//! ```text
//! <state>/<namespace>/<id>/          0700
//!     config.json                    the runtime specification
//!     rootfs/                        0711, the shim mounts here
//!     work -> <root>/<namespace>/<id>
//!     log                            fifo, the shim's own log
//!     shim-binary-path               0600, to call `delete` by
//!     bootstrap.json                 how to reach the shim
//! ```
//!
//! A folder whose name begins with a dot is being removed. Source: containerd's `core/runtime/v2/bundle.go`.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;
use crate::names::{Id, Namespace};

/// Below the daemon's state and root folder; named as containerd's, for those who look for it there.
pub const TASKS: &str = "io.containerd.runtime.v2.task";
/// Of sandboxes. A shim tells by this part of its path that it is started for one.
pub const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";

/// Where bundles are made.
#[derive(Clone, Debug)]
pub struct Bundles {
    state: PathBuf,
    root: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Bundle {
    pub path: PathBuf,
    work: PathBuf,
}

impl Bundles {
    /// # Errors
    /// The folders cannot be made.
    pub fn open(state: &Path, root: &Path, kind: &str) -> Result<Bundles, Error> {
        let bundles = Bundles { state: state.join(kind), root: root.join(kind) };
        for path in [&bundles.state, &bundles.root] {
            folder(path, 0o711).map_err(|error| failed("making", path, &error))?;
        }
        Ok(bundles)
    }

    /// Makes a bundle with everything but what the shim adds.
    ///
    /// # Errors
    /// There is one already, or it cannot be made; then nothing of it is left.
    pub fn create(&self, namespace: &Namespace, id: &Id, spec: Option<&[u8]>) -> Result<Bundle, Error> {
        let bundle = self.bundle(namespace, id);
        let path = &bundle.path;
        for above in [path.parent(), bundle.work.parent()].into_iter().flatten() {
            folder(above, 0o711).map_err(|error| failed("making", above, &error))?;
        }
        DirBuilder::new().mode(0o700).create(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists(format!("bundle {}", path.display())),
            _ => failed("making", path, &error),
        })?;
        bundle.fill(spec).map_err(|error| {
            let error = failed("filling", path, &error);
            match bundle.remove() {
                Ok(()) => error,
                Err(left) => Error::Internal(format!("{error}; and then {left}")),
            }
        })?;
        Ok(bundle)
    }

    /// What an earlier daemon left: each with its names. What was half removed is removed now.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn found(&self) -> Result<Vec<(Namespace, Id, Bundle)>, Error> {
        let mut found = Vec::new();
        for (space, path) in entries(&self.state)? {
            let Ok(namespace) = Namespace::parse(&space) else { continue };
            for (name, path) in entries(&path)? {
                if name.starts_with('.') {
                    sweep(&path)?;
                } else if let Ok(id) = Id::parse(&name) {
                    found.push((namespace.clone(), id.clone(), self.bundle(&namespace, &id)));
                }
            }
        }
        Ok(found)
    }

    fn bundle(&self, namespace: &Namespace, id: &Id) -> Bundle {
        let below = Path::new(namespace.as_str()).join(id.as_str());
        Bundle { path: self.state.join(&below), work: self.root.join(below) }
    }
}

impl Bundle {
    fn fill(&self, spec: Option<&[u8]>) -> io::Result<()> {
        if let Some(gid) = spec.and_then(group_of_root) {
            self.let_in(gid)?;
        }
        folder(&self.path.join("rootfs"), 0o711)?;
        folder(&self.work, 0o711)?;
        symlink(&self.work, self.path.join("work"))?;
        match spec {
            Some(spec) => fs::write(self.path.join("config.json"), spec),
            None => Ok(()),
        }
    }

    /// Lets a group pass through to what is in it: that of a user namespace's root.
    ///
    /// # Errors
    /// The folder cannot be changed.
    pub fn admit(&self, gid: u32) -> Result<(), Error> {
        self.let_in(gid).map_err(|error| failed("changing", &self.path, &error))
    }

    fn let_in(&self, gid: u32) -> io::Result<()> {
        std::os::unix::fs::chown(&self.path, None, Some(gid))?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o710))
    }

    /// Removes the bundle with what is still mounted in it. One that is gone is no error.
    ///
    /// # Errors
    /// Something is mounted that cannot be unmounted: then nothing below it is touched.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &self.work, &error));
            }
            _ => {}
        }
        let (Some(above), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        let aside = above.join(format!(".{}", name.to_string_lossy()));
        match fs::rename(&self.path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("renaming", &self.path, &error)),
            Ok(()) => {}
        }
        sweep(&aside)
    }
}

/// Removes a bundle's folder, once nothing is mounted on its rootfs.
fn sweep(path: &Path) -> Result<(), Error> {
    let rootfs = path.join("rootfs");
    // MNT_DETACH takes along what is mounted below. Mounts may be stacked, so until there is none.
    loop {
        match rustix::mount::unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break, // not a mount point, or not there: umount(2)
            Err(errno) => return Err(failed("unmounting", &rootfs, &errno.into())),
        }
    }
    // Believed only after a second look: what follows deletes.
    if let Ok(stat) = rustix::fs::statx(CWD, &rootfs, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Err(Error::FailedPrecondition(format!("removing {}: something is mounted there", rootfs.display())));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, &error)),
        _ => Ok(()),
    }
}

/// The host's group for group 0 of the container's user namespace: it must be able to reach the rootfs.
fn group_of_root(spec: &[u8]) -> Option<u32> {
    let spec: serde_json::Value = serde_json::from_slice(spec).ok()?;
    let mappings = spec.pointer("/linux/gidMappings")?.as_array()?;
    let root = mappings.iter().find(|mapping| mapping["containerID"].as_u64() == Some(0))?;
    u32::try_from(root["hostID"].as_u64()?).ok()
}

fn entries(path: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let read = || -> io::Result<_> {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        // A name that is not text was not made by us.
        Ok(entries
            .into_iter()
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .collect())
    };
    read().map_err(|error| failed("reading", path, &error))
}

fn folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::io(format!("{doing} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (Namespace, Id) {
        (Namespace::parse("n").unwrap(), Id::parse("c").unwrap())
    }

    fn bundles(dir: &Path) -> Bundles {
        Bundles::open(&dir.join("state"), &dir.join("root"), TASKS).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_bundle_is_made_found_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = bundles(dir.path());
        let (namespace, id) = names();
        let bundle = bundles.create(&namespace, &id, Some(b"{}")).unwrap();
        assert_eq!(fs::read(bundle.path.join("config.json")).unwrap(), b"{}");
        assert_eq!((mode(&bundle.path), mode(&bundle.path.join("rootfs"))), (0o700, 0o711));
        assert!(fs::read_link(bundle.path.join("work")).unwrap().is_dir());
        assert!(matches!(bundles.create(&namespace, &id, Some(b"{}")), Err(Error::AlreadyExists(_))));
        let found = bundles.found().unwrap();
        assert_eq!((found.len(), &found[0].1, &found[0].2.path), (1, &id, &bundle.path));
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert!(bundles.found().unwrap().is_empty());
        assert!(!bundle.work.exists());
        assert_eq!(fs::read_dir(bundle.path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_mapped_group_may_pass_through_to_the_rootfs() {
        let dir = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let spec = br#"{"linux":{"gidMappings":[{"containerID":5,"hostID":1,"size":1},{"containerID":0,"hostID":4711,"size":5}]}}"#;
        let bundle = bundles(dir.path()).create(&namespace, &id, Some(spec)).unwrap();
        let metadata = fs::metadata(&bundle.path).unwrap();
        assert_eq!((std::os::unix::fs::MetadataExt::gid(&metadata), mode(&bundle.path)), (4711, 0o710));
    }

    #[test]
    fn what_is_mounted_on_the_rootfs_is_unmounted_and_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("file"), b"kept").unwrap();
        let (namespace, id) = names();
        let bundle = bundles(dir.path()).create(&namespace, &id, Some(b"{}")).unwrap();
        for _ in 0..2 {
            rustix::mount::mount_bind(&precious, bundle.path.join("rootfs")).unwrap();
        }
        bundle.remove().unwrap();
        assert_eq!(fs::read(precious.join("file")).unwrap(), b"kept");
        assert!(!bundle.path.exists());
    }

    #[test]
    fn a_removal_that_was_cut_short_is_finished_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let bundles = bundles(dir.path());
        let bundle = bundles.create(&namespace, &id, Some(b"{}")).unwrap();
        let aside = bundle.path.with_file_name(".c");
        fs::rename(&bundle.path, &aside).unwrap();
        assert!(bundles.found().unwrap().is_empty());
        assert!(!aside.exists());
    }
}
