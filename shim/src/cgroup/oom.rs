//! Whether the kernel has killed a process of a container for want of memory.
//!
//! v2: `memory.events` changes, and its `oom_kill` has grown. v1: an eventfd that `memory.oom_control` was tied to; the
//! kernel rings it just before it kills, so the count may follow later.
//!
//! Source: kernel cgroup-v2.rst, "memory.events"; cgroup-v1/memory.rst, "OOM Control".

use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::event::{EventfdFlags, eventfd};

use super::{Cgroups, table};
use crate::error::{Doing as _, Failed};
use crate::reactor;

pub struct OomWatch {
    folder: PathBuf,
    version: Version,
    /// How many kills have been told.
    told: Cell<u64>,
}

enum Version {
    V1 { rung: OwnedFd },
    V2 { events: File },
}

impl OomWatch {
    /// Watches the cgroup; none where memory is not counted.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn arm(cgroups: &Cgroups) -> Result<Option<OomWatch>, Failed> {
        let Some(folder) = cgroups.memory() else { return Ok(None) };
        let doing = || format!("watching {} for kills", folder.display());
        let version = if cgroups.unified.is_some() {
            let path = folder.join("memory.events");
            if !path.exists() {
                return Ok(None); // the controller is not enabled down to here
            }
            Version::V2 { events: File::open(path).doing(doing)? }
        } else {
            let control = File::open(folder.join("memory.oom_control")).doing(doing)?;
            let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(doing)?;
            let line = format!("{} {}", rung.as_raw_fd(), control.as_raw_fd());
            fs::write(folder.join("cgroup.event_control"), line).doing(doing)?;
            Version::V1 { rung }
        };
        Ok(Some(OomWatch { folder: folder.to_owned(), version, told: Cell::new(0) }))
    }

    /// Waits for the next kill. None when the cgroup is gone.
    pub async fn next(&self) -> Option<()> {
        loop {
            match &self.version {
                Version::V1 { rung } => {
                    reactor::readable(rung).await.ok()?;
                    let _ = rustix::io::read(rung, &mut [0; 8]); // only whether it rang matters
                    if !self.folder.exists() {
                        return None; // removal rings it too
                    }
                    self.told.set(self.told.get() + 1);
                    return Some(());
                }
                Version::V2 { events } => {
                    if self.untold() {
                        return Some(());
                    }
                    // kernfs signals a change to those who have read the file: read it from this descriptor.
                    rustix::io::pread(events, &mut [0; 256], 0).ok()?;
                    reactor::exceptional(events).await.ok()?;
                    if !self.folder.exists() {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether there was a kill that was not told yet; it counts as told from here on.
    pub fn untold(&self) -> bool {
        let file = if matches!(self.version, Version::V1 { .. }) { "memory.oom_control" } else { "memory.events" };
        let count = table(&self.folder, file)("oom_kill");
        count > self.told.replace(self.told.get().max(count))
    }
}
