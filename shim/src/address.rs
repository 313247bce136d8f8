//! Where the serving process of a group listens.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::{Doing as _, Error};

/// As containerd's own shim, so that nothing on the machine has to know another place.
const DEFAULT: &str = "/run/containerd/s";

/// The annotations that name a group, first match first.
const GROUPS: &[&str] = &["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The group of the bundle in the working folder: a pod's id, or the task's own.
pub fn group(id: &str) -> String {
    let config = fs::read("config.json").ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let named = |config: &serde_json::Value| {
        GROUPS
            .iter()
            .find_map(|name| config["annotations"][name].as_str().filter(|group| !group.is_empty()).map(str::to_owned))
    };
    config.as_ref().and_then(named).unwrap_or_else(|| id.to_owned())
}

/// The socket of a group: a name that is as long for every id, in a folder that only its owner can enter.
///
/// # Errors
/// The folder cannot be made, or belongs to somebody else.
pub fn socket(dir: Option<&str>, daemon: &str, namespace: &str, group: &str) -> Result<PathBuf, Error> {
    let dir = Path::new(dir.filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).doing(|| format!("making {}", dir.display()))?;
    let there = fs::symlink_metadata(dir).doing(|| format!("looking at {}", dir.display()))?;
    if !there.is_dir() || there.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::new(format!("{} is not a folder of ours: sockets there could be anybody's", dir.display())));
    }
    if there.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).doing(|| format!("closing {}", dir.display()))?;
    }
    let hash = Sha256::digest(format!("{daemon}/{namespace}/{group}"));
    let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(dir.join(name))
}
