//! Snapshots on overlayfs: a folder for each layer, put together by the kernel when a container mounts them.
//!
//! ```text
//! snapshots/overlayfs/N/fs      the layer's own files
//! snapshots/overlayfs/N/work    overlayfs's own
//! ```
//!
//! Source: kernel overlayfs.rst.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use tare_proto::containerd::types::Mount;

use super::Snapshotter;
use crate::error::{Doing as _, Result};

pub struct Overlay {
    /// Whether the kernel knows the option. The inode index would tie an upper folder to the lower ones it was first
    /// mounted with, and refuse it on others: "Sharing and copying layers".
    index: bool,
    /// Whether overlayfs keeps what it has to remember in attributes of the user: others it cannot set.
    user: bool,
}

impl Overlay {
    pub fn new() -> Overlay {
        Overlay { index: Path::new("/sys/module/overlay/parameters/index").exists(), user: in_user_namespace() }
    }
}

/// Whether root is only root of a user namespace: then attributes that begin with `trusted.` are out of reach, and overlayfs is
/// mounted with `userxattr`. Source: user_namespaces(7), kernel overlayfs.rst, "Unprivileged mounts".
pub fn in_user_namespace() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !whole(map))
}

impl Snapshotter for Overlay {
    /// The layer's own folder looks like the parent's, since it is what a container sees as `/`.
    fn make(&self, folder: &Path, lower: &[PathBuf], _view: bool) -> Result<()> {
        let doing = || format!("making {}", folder.display());
        fs::DirBuilder::new().mode(0o711).create(folder.join("work")).doing(doing)?;
        let own = folder.join("fs");
        fs::DirBuilder::new().create(&own).doing(doing)?;
        let mut mode = 0o755;
        if let Some(parent) = lower.first() {
            let above = fs::metadata(parent).doing(doing)?;
            mode = above.mode() & 0o7777;
            chown(&own, Some(above.uid()), Some(above.gid())).doing(doing)?;
        }
        fs::set_permissions(&own, fs::Permissions::from_mode(mode)).doing(doing)
    }

    fn mounts(&self, folder: &Path, lower: &[PathBuf], view: bool) -> Vec<Mount> {
        let own = folder.join("fs");
        vec![match (lower, view) {
            ([], view) => bind(&own, view),
            ([only], true) => bind(only, true),
            (lower, view) => {
                let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy().into_owned()).collect();
                let mut options = Vec::new();
                if !view {
                    options.push(format!("workdir={}", folder.join("work").display()));
                    options.push(format!("upperdir={}", own.display()));
                }
                options.push(format!("lowerdir={}", lower.join(":")));
                if self.index {
                    options.push("index=off".into());
                }
                if self.user {
                    options.push("userxattr".into());
                }
                Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
            }
        }]
    }

    fn holds_differences(&self) -> bool {
        true
    }
}

pub(super) fn bind(path: &Path, read_only: bool) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: path.to_string_lossy().into_owned(),
        target: String::new(),
        options: vec![if read_only { "ro" } else { "rw" }.into(), "rbind".into()],
    }
}
