//! The numbered folders of one snapshotter.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Doing as _, Result};

pub struct Folders {
    root: PathBuf,
    next: AtomicU64,
    /// Numbers whose row is still to be written: the sweep keeps off them.
    making: Mutex<HashSet<u64>>,
}

impl Folders {
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(root: &Path) -> Result<Folders> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .doing(|| format!("making {}", root.display()))?;
        let mut last = 0;
        for entry in fs::read_dir(root).doing(|| format!("reading {}", root.display()))? {
            let entry = entry.doing(|| format!("reading {}", root.display()))?;
            last = last.max(number_of(&entry.path()).unwrap_or(0));
        }
        Ok(Folders { root: root.to_owned(), next: AtomicU64::new(last + 1), making: Mutex::default() })
    }

    pub fn folder(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// Where a layer's own files lie.
    pub fn layer(&self, number: u64) -> PathBuf {
        self.folder(number).join("fs")
    }

    /// A new, empty folder. Unless it is kept, it goes when it is dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self) -> Result<New<'_>> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        let new = New { folders: self, number, path: self.folder(number), kept: false };
        fs::DirBuilder::new().mode(0o700).create(&new.path).doing(|| format!("making {}", new.path.display()))?;
        Ok(new)
    }

    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove(&self, number: u64) -> Result<()> {
        remove(&self.folder(number))
    }

    /// Removes folders that no row names; `rows` gives the numbers that rows do.
    ///
    /// # Errors
    /// The rows', or a folder cannot be removed.
    pub fn sweep(&self, rows: impl FnOnce() -> Result<HashSet<u64>>) -> Result<()> {
        let doing = || format!("reading {}", self.root.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).doing(doing)? {
            found.push(entry.doing(doing)?.path());
        }
        // In this order: a folder that was found and is not being made any more has its row by now, if it ever gets one.
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = rows()?;
        for path in found {
            if number_of(&path).is_none_or(|number| !making.contains(&number) && !rows.contains(&number)) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

pub struct New<'f> {
    folders: &'f Folders,
    number: u64,
    path: PathBuf,
    kept: bool,
}

impl New<'_> {
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its row is written.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!("{error}; the collector tries again");
        }
        self.folders.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.doing(|| format!("removing {}", path.display())),
    }
}

/// Bytes on disk and inodes; a file with several names counts once.
///
/// # Errors
/// A folder cannot be read.
pub fn usage(folder: &Path) -> Result<(i64, i64)> {
    let mut seen = HashSet::new();
    let (mut size, mut inodes) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let own = fs::symlink_metadata(&folder).doing(|| format!("looking at {}", folder.display()))?;
        (size, inodes) = (size + own.blocks() * 512, inodes + 1);
        for entry in fs::read_dir(&folder).doing(|| format!("reading {}", folder.display()))?.flatten() {
            let Ok(there) = entry.metadata() else { continue }; // removed while we look
            if there.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(there.ino()) {
                (size, inodes) = (size + there.blocks() * 512, inodes + 1);
            }
        }
    }
    Ok((i64::try_from(size).unwrap_or(i64::MAX), inodes))
}

/// All of a layer reaches the disk before its row says that it is whole: one call for the file system instead of one for
/// each file.
///
/// # Errors
/// The disk's.
pub fn sync(folder: &Path) -> Result<()> {
    let handle = fs::File::open(folder).doing(|| format!("opening {}", folder.display()))?;
    rustix::fs::syncfs(&handle).doing(|| format!("syncing {}", folder.display()))
}
