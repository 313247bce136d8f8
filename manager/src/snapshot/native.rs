//! Snapshots as whole copies: a layer begins with all that its parent has. Slow and large, and needs nothing of the kernel.
//!
//! ```text
//! snapshots/native/N/fs      the file system as it is with this layer
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use tare_proto::containerd::types::Mount;

use super::Snapshotter;
use super::overlay::bind;
use crate::error::{Doing as _, Result};
use crate::layer::copy;

pub struct Native;

impl Snapshotter for Native {
    fn make(&self, folder: &Path, lower: &[PathBuf], view: bool) -> Result<()> {
        let own = folder.join("fs");
        let doing = || format!("making {}", own.display());
        fs::create_dir(&own).doing(doing)?;
        match lower.first() {
            Some(parent) if !view => copy::tree(parent, &own).doing(|| format!("copying {}", parent.display())),
            _ => Ok(()),
        }
    }

    fn mounts(&self, folder: &Path, lower: &[PathBuf], view: bool) -> Vec<Mount> {
        match lower.first() {
            Some(parent) if view => vec![bind(parent, true)],
            _ => vec![bind(&folder.join("fs"), view)],
        }
    }

    fn holds_differences(&self) -> bool {
        false
    }
}
