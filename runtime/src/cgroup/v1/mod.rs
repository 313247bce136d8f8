//! Version 1: a tree of directories for each hierarchy of controllers.
//!
//! A directory costs 20 to 50 µs to make, as much to remove, and 15 to join, so a container gets those that it needs:
//! what isolates it and what its statistics come from always, and the others when it has limits there or can look.

mod limits;
mod stats;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access as Permission, Mode, OFlags};
use rustix::io::Errno;

pub use limits::limits;
pub use stats::stats;

use super::devices::Devices;
use super::settings::{Setting, Settings, refused};
use super::{Error, Hierarchy, file};
use crate::error::Doing;

/// Controllers that each container has a cgroup of its own in. A named hierarchy (systemd's) has none, and is as needed:
/// its owner takes what is in there for its own.
const ALWAYS: [&str; 6] = ["cpu", "cpuacct", "devices", "freezer", "memory", "pids"];

/// Files that the root of a hierarchy lacks, so that only the kernel can say whether they exist.
const NOT_ON_ROOT: [&str; 4] = ["blkio.bfq.weight", "blkio.bfq.weight_device", "pids.max", "rdma.max"];

/// How long we wait for processes to die or to stop, and how often we look: version 1 has no event for it.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Refuses settings that this host has no file for.
pub fn check(hierarchies: &[Hierarchy], writes: &[Setting]) -> Result<(), Error> {
    for Setting { controller, file, field, .. } in writes.iter().filter(|write| !write.optional()) {
        let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.has(controller)) else {
            return Err(refused(field, format!("this host has no cgroup hierarchy with the {controller} controller")));
        };
        if !NOT_ON_ROOT.contains(&&**file)
            && rustix::fs::access(hierarchy.root.join(&**file), Permission::EXISTS) == Err(Errno::NOENT)
        {
            return Err(refused(field, format!("this kernel has no {file}")));
        }
    }
    Ok(())
}

pub fn create(hierarchies: &[Hierarchy], settings: &Settings, holder: Option<i32>) -> Result<(), Error> {
    for hierarchy in hierarchies.iter().filter(|hierarchy| needed(hierarchy, settings)) {
        let existed = file::make(&hierarchy.path)?;
        if existed && file::pids(&hierarchy.path)?.iter().any(|pid| Some(*pid) != holder) {
            return Err(Error::InUse { path: hierarchy.path.display().to_string() });
        }
        if hierarchy.has("cpuset") {
            inherit_cpuset(hierarchy)?;
        }
        if let (true, Some(devices)) = (hierarchy.has("devices"), &settings.devices) {
            restrict_devices(&hierarchy.path, devices)?;
        }
    }
    apply(hierarchies, settings.writes.iter().filter(|write| write.fits(holder)))
}

fn needed(hierarchy: &Hierarchy, settings: &Settings) -> bool {
    settings.visible
        || hierarchy.controllers.iter().any(|name| ALWAYS.contains(&name.as_str()) || name.starts_with("name="))
        || settings.writes.iter().any(|write| hierarchy.has(write.controller))
}

/// The quota and period of processor time, and the limit of memory, as they are now.
pub fn present(hierarchies: &[Hierarchy]) -> (Option<i64>, Option<u64>, Option<i64>) {
    let text = |controller: &str, name: &str| file::read(&with(hierarchies, controller)?.path.join(name)).ok();
    let number = |controller: &str, name: &str| text(controller, name)?.parse::<i64>().ok();
    (
        number("cpu", "cpu.cfs_quota_us"),
        number("cpu", "cpu.cfs_period_us").and_then(|period| period.try_into().ok()),
        number("memory", "memory.limit_in_bytes"),
    )
}

pub fn update(hierarchies: &[Hierarchy], settings: &Settings) -> Result<(), Error> {
    if let (Some(limit), Some(memory)) = (settings.check_memory, with(hierarchies, "memory"))
        && let Some(usage) = file::number(&memory.path.join("memory.usage_in_bytes")).filter(|usage| *usage > limit)
    {
        return Err(refused("memory.limit", format!("{limit} is below what is in use, {usage}")));
    }
    // A hierarchy that the container did without until now.
    let new: Vec<&Hierarchy> =
        hierarchies.iter().filter(|hierarchy| needed(hierarchy, settings) && !hierarchy.path.is_dir()).collect();
    for hierarchy in &new {
        file::make(&hierarchy.path)?;
        if hierarchy.has("cpuset") {
            inherit_cpuset(hierarchy)?;
        }
    }
    apply(hierarchies, &settings.writes)?;
    new.into_iter().try_for_each(|hierarchy| move_in(lead(hierarchies), hierarchy))
}

/// Moves all processes into a hierarchy. Each write waits for a grace period, but nothing starts meanwhile.
fn move_in(from: &Path, hierarchy: &Hierarchy) -> Result<(), Error> {
    let procs = hierarchy.path.join("cgroup.procs");
    let mut moved = BTreeSet::new();
    // What a process forks before it is moved is found in the next round.
    loop {
        let fresh: Vec<i32> = file::pids(from)?.into_iter().filter(|pid| moved.insert(*pid)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for pid in fresh {
            match file::write(&procs, &pid.to_string()) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno).doing(|| format!("moving process {pid} to {}", procs.display()))?,
            }
        }
    }
}

/// Writes the values. Limits bind one another (quota and period, memory and swap), and in which order they can be set
/// depends on what is set now: what the kernel refuses is tried once more after the others.
fn apply<'a>(hierarchies: &[Hierarchy], writes: impl IntoIterator<Item = &'a Setting>) -> Result<(), Error> {
    let path =
        |write: &Setting| -> Option<PathBuf> { Some(with(hierarchies, write.controller)?.path.join(&*write.file)) };
    let mut again = Vec::new();
    for write in writes {
        let Some(path) = path(write) else { continue };
        match file::write(&path, &write.value) {
            Err(Errno::INVAL | Errno::BUSY) => again.push((path, write)),
            Err(Errno::NOENT) if write.optional() => {}
            done => done.doing(|| write.doing(&path))?,
        }
    }
    for (path, write) in again {
        file::write(&path, &write.value).doing(|| write.doing(&path))?;
    }
    Ok(())
}

impl Setting {
    fn doing(&self, path: &Path) -> String {
        format!("setting linux.resources.{}: writing {:?} to {}", self.field, self.value, path.display())
    }
}

fn with<'a>(hierarchies: &'a [Hierarchy], controller: &str) -> Option<&'a Hierarchy> {
    hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
}

/// A new cpuset has no processors and no memory, and nothing can join it before it does: it gets its parent's.
fn inherit_cpuset(hierarchy: &Hierarchy) -> Result<(), Error> {
    let mut line: Vec<&Path> = hierarchy.path.ancestors().take_while(|path| *path != hierarchy.root).collect();
    line.reverse();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let mut above = hierarchy.root.join(name);
        for path in &line {
            let here = path.join(name);
            let value = file::read(&here).doing(|| format!("reading {}", here.display()))?;
            if value.is_empty() {
                let value = file::read(&above).doing(|| format!("reading {}", above.display()))?;
                file::write(&here, &value).doing(|| format!("writing {value:?} to {}", here.display()))?;
            }
            above = here;
        }
    }
    Ok(())
}

fn restrict_devices(path: &Path, devices: &Devices) -> Result<(), Error> {
    let rules = devices.as_v1()?;
    let (first, others) =
        if rules.allowed { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    let first = path.join(first);
    file::write(&first, "a")
        .doing(|| format!("setting linux.resources.devices: writing \"a\" to {}", first.display()))?;
    let others = path.join(others);
    let doing = |line: &str| format!("setting linux.resources.devices: writing {line:?} to {}", others.display());
    let file = rustix::fs::open(&others, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| doing(""))?;
    for line in rules.lines() {
        rustix::io::write(&file, line.as_bytes()).doing(|| doing(&line))?;
    }
    Ok(())
}

/// The ways in to those of the cgroups that exist.
pub fn tasks(hierarchies: &[Hierarchy]) -> Result<Vec<OwnedFd>, Error> {
    let mut tasks = Vec::with_capacity(hierarchies.len());
    for hierarchy in hierarchies {
        let path = hierarchy.path.join("tasks");
        match rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => tasks.push(file),
            Err(Errno::NOENT) => {} // not needed
            Err(errno) => return Err(errno).doing(|| format!("opening {}", path.display()))?,
        }
    }
    Ok(tasks)
}

/// Where all processes of the container are and can be held: the freezer, or the first that has a directory.
pub fn lead(hierarchies: &[Hierarchy]) -> &Path {
    let freezer = with(hierarchies, "freezer");
    let any = || hierarchies.iter().find(|hierarchy| hierarchy.path.is_dir()).or(hierarchies.first());
    freezer.or_else(any).map_or(Path::new(""), |hierarchy| &hierarchy.path)
}

fn freezer(hierarchies: &[Hierarchy]) -> Result<PathBuf, Error> {
    match with(hierarchies, "freezer") {
        Some(hierarchy) => Ok(hierarchy.path.join("freezer.state")),
        None => Err(Error::refused("pausing", "this host has no cgroup hierarchy with the freezer controller")),
    }
}

pub fn freeze(hierarchies: &[Hierarchy]) -> Result<(), Error> {
    let state = freezer(hierarchies)?;
    let doing = || format!("freezing {}", state.display());
    let start = Instant::now();
    loop {
        // A process that was being forked stays out until asked again: freezer-subsystem.rst.
        file::write(&state, "FROZEN").doing(doing)?;
        if file::read(&state).doing(doing)? == "FROZEN" {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            file::write(&state, "THAWED").doing(doing)?;
            return Err(Error::Busy { path: state.display().to_string(), seconds: PATIENCE.as_secs() });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

pub fn thaw(hierarchies: &[Hierarchy]) -> Result<(), Error> {
    let state = freezer(hierarchies)?;
    Ok(file::write(&state, "THAWED").doing(|| format!("thawing {}", state.display()))?)
}

pub fn frozen(hierarchies: &[Hierarchy]) -> Result<bool, Error> {
    let Ok(state) = freezer(hierarchies) else { return Ok(false) };
    match file::read(&state) {
        Ok(text) => Ok(text == "FROZEN" || text == "FREEZING"),
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        Err(errno) => Err(errno).doing(|| format!("reading {}", state.display()))?,
    }
}

/// Signals come one by one here, so the processes are held still meanwhile: none can fork away.
pub fn kill(hierarchies: &[Hierarchy]) -> Result<(), Error> {
    let held = freeze(hierarchies).is_ok();
    let mut signalled = BTreeSet::new();
    // Without a freezer, a process that forks as we go is found in the next round.
    loop {
        let pids = file::pids(lead(hierarchies))?;
        let fresh: Vec<i32> = pids.into_iter().filter(|pid| signalled.insert(*pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        if held {
                            thaw(hierarchies)?;
                        }
                        return Err(errno).doing(|| format!("killing process {}", pid.as_raw_nonzero()))?;
                    }
                }
            }
        }
    }
    if held { thaw(hierarchies) } else { Ok(()) }
}

pub fn remove(hierarchies: &[Hierarchy]) -> Result<(), Error> {
    let start = Instant::now();
    for hierarchy in hierarchies {
        remove_tree(&hierarchy.path, start)?;
    }
    Ok(())
}

fn remove_tree(path: &Path, start: Instant) -> Result<(), Error> {
    loop {
        // Most containers make no cgroups: try without looking.
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno).doing(|| format!("removing cgroup {}", path.display()))?,
        }
        let below = file::tree(path);
        for child in below.iter().take(below.len().saturating_sub(1)) {
            match rustix::fs::rmdir(child) {
                Ok(()) | Err(Errno::NOENT | Errno::BUSY) => {}
                Err(errno) => return Err(errno).doing(|| format!("removing cgroup {}", child.display()))?,
            }
        }
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(_) if start.elapsed() > PATIENCE => {
                return Err(Error::Busy { path: path.display().to_string(), seconds: PATIENCE.as_secs() });
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}
