use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod, fchown};
use rustix::process::{Gid, Uid};

use super::unpack::{open_folder, open_root, reopen};
use crate::error::{Doing as _, Result};

/// Gives folders that a layer only implied the owner and mode that they have in the layers below, top first.
///
/// # Errors
/// A folder cannot be changed.
pub fn inherit(folder: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> Result<()> {
    let root = open_root(folder)?;
    for path in implied {
        let there =
            |layer: &PathBuf| std::fs::symlink_metadata(layer.join(path)).ok().filter(std::fs::Metadata::is_dir);
        let Some(below) = lower.iter().find_map(there) else { continue };
        let doing = || format!("setting the owner and mode of {}", path.display());
        let Ok(made) = open_folder(&root, path).and_then(|made| reopen(&made)) else { continue }; // replaced by a later entry
        fchown(&made, Some(Uid::from_raw(below.uid())), Some(Gid::from_raw(below.gid()))).doing(doing)?;
        fchmod(&made, Mode::from_raw_mode(below.mode() & 0o7777)).doing(doing)?;
    }
    Ok(())
}
