//! The pod's own root: the init, and the places that its mounts need.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Doing as _, Failed};

/// The program that `build.rs` compiles.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// In the bundle. Not `rootfs`, which daemons remove as an empty folder: containerd `core/runtime/v2/bundle.go`.
pub const FOLDER: &str = "pod";

/// Makes it in the bundle, anew if there is one.
///
/// # Errors
/// The bundle cannot be written.
pub fn make(bundle: &Path) -> Result<(), Failed> {
    let root = bundle.join(FOLDER);
    // World-readable, since the pod's ids may be mapped to any; there is nothing secret in it.
    for folder in [root.clone(), root.join("proc"), root.join("dev")] {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&folder);
        made.doing(|| format!("making {}", folder.display()))?;
    }
    let path = root.join("pause");
    let doing = || format!("writing {}", path.display());
    let _ = fs::remove_file(&path); // one that is being executed could not be written
    let mut file = File::options().write(true).create_new(true).mode(0o755).open(&path).doing(doing)?;
    file.write_all(INIT).doing(doing)
}
