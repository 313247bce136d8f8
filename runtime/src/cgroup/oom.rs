//! Hearing of it when the kernel kills for want of memory.
//!
//! Source: kernel cgroup-v1/memory.rst, "OOM Control" and "Memory thresholds"; cgroup-v2.rst, `memory.events`.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;

use super::{CgroupPath, Error, file};
use crate::error::Doing;

/// Becomes readable when something may have happened.
#[derive(Debug)]
pub struct Watch {
    signal: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The kernel counts up an eventfd, and does so once more when the cgroup is removed.
    V1 { control: PathBuf },
    /// A file is modified, which has a count.
    V2 { events: PathBuf, killed: u64 },
}

impl Watch {
    /// None if the container has no cgroup that counts memory.
    pub fn open(path: &CgroupPath) -> Result<Option<Watch>, Error> {
        match path {
            CgroupPath::V1 { hierarchies } => {
                let memory = hierarchies.iter().find(|hierarchy| hierarchy.has("memory"));
                memory.filter(|memory| memory.path.is_dir()).map(|memory| v1(&memory.path)).transpose()
            }
            CgroupPath::V2 { path, .. } => {
                let events = path.join("memory.events");
                events.exists().then(|| v2(events)).transpose()
            }
        }
    }

    /// How often the kernel has killed since this was last asked: on version 1 at least that often.
    pub fn killed(&mut self) -> Result<u64, Error> {
        match &mut self.kind {
            Kind::V1 { control } => {
                let mut count = [0; 8];
                match rustix::io::read(&self.signal, &mut count) {
                    Ok(_) if control.exists() => Ok(u64::from_ne_bytes(count)),
                    Ok(_) | Err(Errno::AGAIN) => Ok(0),
                    Err(errno) => Err(errno).doing(|| "waiting for the kernel to be out of memory".into())?,
                }
            }
            Kind::V2 { events, killed } => {
                let mut told = [0; 4096]; // what is told says no more than that there is something to read
                while matches!(rustix::io::read(&self.signal, &mut told), Ok(1..)) {}
                let now = count(events).unwrap_or(*killed);
                let more = now.saturating_sub(*killed);
                *killed = now;
                Ok(more)
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

fn v1(memory: &Path) -> Result<Watch, Error> {
    let control = memory.join("cgroup.event_control");
    let doing = || format!("watching {} for want of memory", memory.display());
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(doing)?;
    let oom = rustix::fs::open(memory.join("memory.oom_control"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(doing)?;
    file::write(&control, &format!("{} {}", signal.as_raw_fd(), oom.as_raw_fd())).doing(doing)?;
    Ok(Watch { signal, kind: Kind::V1 { control } })
}

fn v2(events: PathBuf) -> Result<Watch, Error> {
    let doing = || format!("watching {}", events.display());
    let signal = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).doing(doing)?;
    inotify::add_watch(&signal, &events, inotify::WatchFlags::MODIFY).doing(doing)?;
    let killed = count(&events).doing(doing)?;
    Ok(Watch { signal, kind: Kind::V2 { events, killed } })
}

fn count(events: &Path) -> Result<u64, Errno> {
    let text = file::read(events)?;
    Ok(file::pairs(&text).find(|(key, _)| *key == "oom_kill").map_or(0, |(_, count)| count))
}
