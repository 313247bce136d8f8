//! Which containers are in the pod: in the sandbox's bundle, a link for each to the bundle of its own.
//!
//! The daemon calls `delete` for the sandbox alone when its shim was killed, and not for the containers in it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Failed};
use crate::log;
use crate::task::Supervisor;

const FOLDER: &str = "containers";

impl Supervisor {
    /// To be called before the runtime is, so that nothing is made that is not found again.
    ///
    /// # Errors
    /// The sandbox's bundle cannot be written.
    pub(crate) fn join_pod(&self, id: &str, bundle: &Path) -> Result<(), Failed> {
        let Some(sandbox) = self.sandbox.borrow().clone() else { return Ok(()) };
        let folder = sandbox.bundle.join(FOLDER);
        fs::create_dir_all(&folder).doing(|| format!("making {}", folder.display()))?;
        let link = folder.join(id);
        match symlink(bundle, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
        .doing(|| format!("writing the link {}", link.display()))
    }

    pub(crate) fn leave_pod(&self, id: &str) {
        let Some(sandbox) = self.sandbox.borrow().clone() else { return };
        let link = sandbox.bundle.join(FOLDER).join(id);
        if let Err(error) = fs::remove_file(&link)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn(&format!("removing the link {}: {error}", link.display()));
        }
    }
}

/// Id and bundle of each container of the pod whose sandbox has this bundle.
pub fn of(bundle: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(bundle.join(FOLDER)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read_link(entry.path()).ok()?)))
        .collect()
}
