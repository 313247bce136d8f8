//! Fifos between the daemon and a process in a container: made by us, opened by its shim, gone when it has ended.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use tokio::net::unix::pipe;

use super::folders;
use super::record::off_thread;
use crate::error::{Doing as _, Result};

/// A folder with fifos.
pub struct Fifos {
    place: PathBuf,
}

impl Fifos {
    /// # Errors
    /// The folder cannot be made.
    pub async fn make(place: PathBuf, names: &'static [&'static str]) -> Result<Fifos> {
        off_thread(move || {
            folders::make(&place, 0o700)?;
            names.iter().try_for_each(|name| one(&place.join(name)))?;
            Ok(Fifos { place })
        })
        .await
    }

    /// As the shim is told of one.
    pub fn path(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }

    /// The reading end, there before anybody writes.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn reader(&self, name: &str) -> Result<pipe::Receiver> {
        let path = self.place.join(name);
        pipe::OpenOptions::new().open_receiver(&path).doing(|| format!("opening {}", path.display()))
    }

    /// # Errors
    /// What is left cannot be removed.
    pub async fn remove(self) -> Result<()> {
        off_thread(move || folders::remove(&self.place)).await
    }
}

/// Makes a fifo for us and the shim alone.
///
/// # Errors
/// There is something of that name.
pub fn one(path: &Path) -> Result<()> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .doing(|| format!("making {}", path.display()))
}

/// The writing end of one that a shim reads.
///
/// # Errors
/// Nobody reads it.
pub fn writer(path: &Path) -> Result<pipe::Sender> {
    pipe::OpenOptions::new().open_sender(path).doing(|| format!("opening {}", path.display()))
}
