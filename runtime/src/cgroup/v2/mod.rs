//! Version 2: one directory, with the controllers that its parents hand down.

mod bpf;
mod limits;
mod program;
mod stats;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use limits::{limits, unified_memory_swap, weight_from_shares};
pub use stats::stats;

use super::devices::Devices;
use super::settings::{Setting, Settings, refused};
use super::{Error, file};
use crate::error::{Doing, Failed};

/// How long we wait for processes to die or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Refuses settings of controllers that this host lacks.
pub fn check(root: &Path, writes: &[Setting]) -> Result<(), Error> {
    if writes.is_empty() {
        return Ok(());
    }
    let available = controllers(root)?;
    for Setting { controller, field, .. } in writes {
        if *controller != "cgroup" && !has(&available, controller) {
            return Err(refused(field, format!("this host has no {controller} controller in cgroup version 2")));
        }
    }
    Ok(())
}

pub fn create(root: &Path, path: &Path, settings: &Settings, holder: Option<i32>) -> Result<(), Error> {
    let existed = file::make(path)?;
    if existed && file::pids(path)?.iter().any(|pid| Some(*pid) != holder) {
        return Err(Error::InUse { path: path.display().to_string() });
    }
    hand_down(root, path, &settings.writes)?;
    apply(path, settings.writes.iter().filter(|write| write.fits(holder)))?;
    if let Some(devices) = &settings.devices {
        restrict_devices(path, devices)?;
    }
    Ok(())
}

fn controllers(path: &Path) -> Result<String, Failed> {
    let path = path.join("cgroup.controllers");
    file::read(&path).doing(|| format!("reading {}", path.display()))
}

fn has(controllers: &str, controller: &str) -> bool {
    controllers.split(' ').any(|name| name == controller)
}

/// Enables, from the root down, all controllers that the host has, so that statistics and later limits work; only what
/// `writes` needs must succeed. A parent with processes of its own hands nothing down: cgroup-v2.rst, "No Internal Process
/// Constraint".
fn hand_down(root: &Path, path: &Path, writes: &[Setting]) -> Result<(), Error> {
    let available = controllers(root)?;
    let here = controllers(path)?;
    let missing: Vec<&str> = available.split(' ').filter(|name| !name.is_empty() && !has(&here, name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut line: Vec<&Path> = path.ancestors().skip(1).take_while(|above| above.starts_with(root)).collect();
    line.reverse();
    for above in line {
        let control = above.join("cgroup.subtree_control");
        let all: String = missing.iter().map(|name| format!("+{name} ")).collect();
        if file::write(&control, all.trim_end()).is_ok() {
            continue;
        }
        for name in &missing {
            let enabled = file::write(&control, &format!("+{name}"));
            if let Some(write) = writes.iter().find(|write| write.controller == *name) {
                enabled.doing(|| {
                    let field = &write.field;
                    format!("setting linux.resources.{field}: enabling {name} in {}", control.display())
                })?;
            }
        }
    }
    Ok(())
}

fn apply<'a>(path: &Path, writes: impl IntoIterator<Item = &'a Setting>) -> Result<(), Error> {
    let mut again = Vec::new();
    for write in writes {
        match set(path, write) {
            Ok(()) => {}
            // Limits bind one another, cpu.max and its burst: tried once more after the others.
            Err((_, Errno::INVAL | Errno::BUSY)) => again.push(write),
            Err(failed) => return Err(sentence(write, failed)),
        }
    }
    for write in again {
        set(path, write).map_err(|failed| sentence(write, failed))?;
    }
    Ok(())
}

fn sentence(write: &Setting, (path, errno): (PathBuf, Errno)) -> Error {
    let doing = format!("setting linux.resources.{}: writing {:?} to {}", write.field, write.value, path.display());
    Error::Failed(Failed { doing, errno })
}

fn set(path: &Path, write: &Setting) -> Result<(), (PathBuf, Errno)> {
    let file = path.join(&*write.file);
    match (file::write(&file, &write.value), &*write.file) {
        (Ok(()), _) => Ok(()),
        // Without the bfq scheduler the weight goes to io.weight, which has another scale: 1 to 10000.
        (Err(Errno::NOENT), "io.bfq.weight") => {
            let file = path.join("io.weight");
            let weight = |weight: u64| (1 + (weight - 10) * 9999 / 990).to_string();
            let value = match write.value.split_once(' ') {
                None => write.value.parse().map(weight),
                Some((device, value)) => value.parse().map(|value| format!("{device} {}", weight(value))),
            };
            let value = value.map_err(|_| (file.clone(), Errno::INVAL))?;
            file::write(&file, &value).map_err(|errno| (file, errno))
        }
        (Err(Errno::NOENT), _) if write.optional() => Ok(()),
        // A kernel without swap has no file, and gives no swap.
        (Err(Errno::NOENT), "memory.swap.max") if write.value == "0" || write.value == "max" => Ok(()),
        (Err(errno), _) => Err((file, errno)),
    }
}

/// The quota and period of processor time, and the limit of memory, as they are now.
pub fn present(path: &Path) -> (Option<i64>, Option<u64>, Option<i64>) {
    let number = |text: &str| if text == "max" { Some(-1) } else { text.parse::<i64>().ok() };
    let cpu = file::read(&path.join("cpu.max")).unwrap_or_default();
    let (quota, period) = cpu.split_once(' ').unwrap_or_default();
    let memory = file::read(&path.join("memory.max")).ok();
    (number(quota), period.parse().ok(), memory.and_then(|text| number(&text)))
}

pub fn update(path: &Path, settings: &Settings) -> Result<(), Error> {
    if let Some(limit) = settings.check_memory
        && let Some(usage) = file::number(&path.join("memory.current")).filter(|usage| *usage > limit)
    {
        return Err(refused("memory.limit", format!("{limit} is below what is in use, {usage}")));
    }
    apply(path, &settings.writes)
}

fn restrict_devices(path: &Path, devices: &Devices) -> Result<(), Error> {
    if devices.allow_all() {
        return Ok(()); // no program allows as much; those above may still forbid
    }
    let cgroup = directory(path)?;
    let program = bpf::load(&program::compile(devices))
        .doing(|| "setting linux.resources.devices: loading the device program".into())?;
    bpf::attach(&cgroup, &program)
        .doing(|| format!("setting linux.resources.devices: attaching the device program to {}", path.display()))?;
    Ok(())
}

/// The way in. A plain descriptor, not `O_PATH`: bpf(2) wants to be able to use it.
pub fn directory(path: &Path) -> Result<OwnedFd, Failed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("opening cgroup {}", path.display()))
}

/// The files whose owner the kernel says to change are those that hand things down, not those that limit.
pub fn delegate(path: &Path, uid: u32) -> Result<(), Error> {
    let list = file::read(Path::new("/sys/kernel/cgroup/delegate"));
    let list = list.unwrap_or_else(|_| "cgroup.procs\ncgroup.threads\ncgroup.subtree_control".into());
    let uid = Some(rustix::fs::Uid::from_raw(uid));
    let doing = |path: &Path| format!("giving {} to the container", path.display());
    rustix::fs::chown(path, uid, None).doing(|| doing(path))?;
    for file in list.lines().map(|name| path.join(name)) {
        match rustix::fs::chown(&file, uid, None) {
            Ok(()) | Err(Errno::NOENT) => {} // a controller that is not here
            Err(errno) => Err(errno).doing(|| doing(&file))?,
        }
    }
    Ok(())
}

pub fn freeze(path: &Path) -> Result<(), Error> {
    let doing = || format!("freezing {}", path.display());
    file::write(&path.join("cgroup.freeze"), "1").doing(doing)?;
    if wait_for(path, "frozen", "1").doing(doing)? {
        return Ok(());
    }
    thaw(path)?;
    Err(Error::Busy { path: path.display().to_string(), seconds: PATIENCE.as_secs() })
}

pub fn thaw(path: &Path) -> Result<(), Error> {
    let doing = || format!("thawing {}", path.display());
    file::write(&path.join("cgroup.freeze"), "0").doing(doing)?;
    wait_for(path, "frozen", "0").doing(doing)?;
    Ok(())
}

pub fn frozen(path: &Path) -> Result<bool, Error> {
    let file = path.join("cgroup.freeze");
    match file::read(&file) {
        Ok(text) => Ok(text == "1"),
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        Err(errno) => Err(errno).doing(|| format!("reading {}", file.display()))?,
    }
}

pub fn kill(path: &Path) -> Result<(), Error> {
    let file = path.join("cgroup.kill");
    match file::write(&file, "1") {
        Ok(()) => Ok(()),
        // Linux before 5.14.
        Err(Errno::NOENT) if path.is_dir() => kill_one_by_one(path),
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("killing all in {}", path.display()))?,
    }
}

fn kill_one_by_one(path: &Path) -> Result<(), Error> {
    freeze(path)?; // so that none can fork away; a frozen process still dies of SIGKILL here
    for pid in file::pids(path)?.into_iter().filter_map(rustix::process::Pid::from_raw) {
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).doing(|| format!("killing process {}", pid.as_raw_nonzero()))?,
        }
    }
    thaw(path)
}

pub fn remove(path: &Path) -> Result<(), Error> {
    let doing = |path: &Path| format!("removing cgroup {}", path.display());
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno).doing(|| doing(path))?,
    }
    if !wait_for(path, "populated", "0").doing(|| doing(path))? {
        return Err(Error::Busy { path: path.display().to_string(), seconds: PATIENCE.as_secs() });
    }
    for cgroup in file::tree(path) {
        match rustix::fs::rmdir(&cgroup) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(|| doing(&cgroup))?,
        }
    }
    Ok(())
}

/// Waits until `cgroup.events` says so; its changes come as `POLLPRI`. False if it never does; true if the cgroup is gone.
fn wait_for(path: &Path, key: &str, value: &str) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events = match rustix::fs::open(path.join("cgroup.events"), flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(true),
        opened => opened?,
    };
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 256];
    loop {
        let length = match rustix::io::pread(&events, &mut buffer, 0) {
            Err(Errno::NODEV) => return Ok(true),
            read => read?,
        };
        let text = str::from_utf8(&buffer[..length]).unwrap_or_default();
        if text.lines().any(|line| line.split_once(' ') == Some((key, value))) {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
