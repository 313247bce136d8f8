use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fchmod, fchown, fstat, openat2};
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
        let Some(below) = lower.iter().find_map(|layer| looks(layer, path)) else { continue };
        let doing = || format!("setting the owner and mode of {}", path.display());
        let Ok(made) = open_folder(&root, path).and_then(|made| reopen(&made)) else { continue }; // replaced by a later entry
        fchown(&made, Some(Uid::from_raw(below.st_uid)), Some(Gid::from_raw(below.st_gid))).doing(doing)?;
        fchmod(&made, Mode::from_raw_mode(below.st_mode & 0o7777)).doing(doing)?;
    }
    Ok(())
}

/// A folder of a layer below, which is as hostile: nothing is looked up through its links.
fn looks(layer: &Path, path: &Path) -> Option<Stat> {
    let root = open_root(layer).ok()?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fstat(openat2(&root, path, flags, Mode::empty(), within).ok()?).ok()
}
