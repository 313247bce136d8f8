//! The state directory: one folder for each container below the root, with what is known of it in two files.
//!
//! `state.json` is there before anything else is made and says what is about to be made, so that `delete --force` can undo
//! any prefix of `create`: SIGKILL runs no destructor. `init` names the first process as soon as there is one. Both are
//! written once and never replaced: a rename over a file makes a disk's file system write the new one out, and wait, which
//! took longer than all that a container needs. A command that changes a container holds a lock on its folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupPath;
use crate::error::{Doing as _, Failed};
use crate::plan::Gate;
use crate::{spec, systemd};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container does not exist")]
    NotFound,
    #[error("container with given ID already exists")]
    Exists,
    #[error("invalid container ID format: {0:?}: letters, digits and _+-. only")]
    BadId(String),
    #[error("reading {}: {why} (`delete --force` removes what is left of the container)", .path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// A container's name. Having one proves that a path made of it stays in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// # Errors
    /// Empty, `.`, `..`, or a letter that is not allowed.
    pub fn new(text: &str) -> Result<Id, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if text.is_empty() || text == "." || text == ".." || text.len() > 1024 || !text.chars().all(allowed) {
            return Err(Error::BadId(text.to_owned()));
        }
        Ok(Id(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub oci_version: String,
    pub id: Id,
    /// 0 until the first process exists.
    #[serde(skip)]
    pub pid: i32,
    /// In clock ticks since boot, field 22 of /proc/PID/stat: a pid with another start time is another process.
    #[serde(skip)]
    pub start_time: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: SystemTime,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// None if the container has none of its own.
    pub cgroup: Option<CgroupPath>,
    /// What systemd knows the container by, if its cgroups are systemd's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<systemd::Unit>,
    pub process: spec::Process,
    #[serde(default)]
    pub hooks: spec::Hooks,
    /// The compiled filter, for processes that join.
    pub filter: Option<SavedFilter>,
    /// The execution domain of all its processes, if it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<u64>,
    /// Whether the container has a PID namespace of its own, whose end takes all processes along.
    pub own_pid_namespace: bool,
    /// `CLONE_NEW…` of every namespace that is not the host's: what a process joins.
    pub namespaces: u64,
    /// What its standard input, output and error were, for a checkpoint; empty if it has a terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<String>,
}

/// A seccomp program as it is kept: the profile's text may change after `create`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedFilter {
    pub flags: u32,
    /// code, jt, jf, k of each instruction.
    pub instructions: Vec<(u16, u8, u8, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<crate::seccomp::Listener>,
}

/// runtime-spec runtime.md, "State".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

const STATE: &str = "state.json";
const INIT: &str = "init";
const LOCK: &str = ".lock";
const GATE: &str = "exec.fifo";
/// In a folder of its own: whoever looks at what a created container holds open knows the fifo by runc's name for it.
const RESULT_FOLDER: &str = "result";
const RESULT: &str = "result/exec.fifo";

/// A container's folder below the root.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Removed when dropped, unless it was committed.
    undo: bool,
    /// Held while this value lives.
    _lock: Option<OwnedFd>,
}

impl StateDir {
    /// Makes the folder and writes down what is intended.
    ///
    /// # Errors
    /// `Exists`, or the folder cannot be made.
    pub fn claim(root: &Path, intent: &State) -> Result<StateDir, Error> {
        let folder = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
        let path = root.join(intent.id.as_str());
        let made = match folder(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(root)
                    .doing(|| format!("making {}", root.display()))?;
                folder(&path)
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists),
            made => made.doing(|| format!("making {}", path.display()))?,
        }
        let lock = lock(&path)?;
        let entry = StateDir { path, undo: true, _lock: Some(lock) };
        entry.write(intent)?;
        Ok(entry)
    }

    /// Opens the folder of a container that exists, for a command that changes it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open(root: &Path, id: &Id) -> Result<StateDir, Error> {
        let path = root.join(id.as_str());
        let lock = lock(&path)?;
        Ok(StateDir { path, undo: false, _lock: Some(lock) })
    }

    /// Opens it for a command that only looks.
    pub fn look(root: &Path, id: &Id) -> StateDir {
        StateDir { path: root.join(id.as_str()), undo: false, _lock: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the state aside, then gives it its name: whoever reads sees all of it or nothing.
    ///
    /// # Errors
    /// The disk is full, …
    pub fn write(&self, state: &State) -> Result<(), Error> {
        let text = serde_json::to_vec(state).expect("a state has only strings as keys");
        let (aside, place) = (self.path.join(".state.json"), self.path.join(STATE));
        let write = || -> io::Result<()> {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?.write_all(&text)?;
            fs::rename(&aside, &place)
        };
        Ok(write().doing(|| format!("writing {}", place.display()))?)
    }

    /// Notes the first process: its pid and start time, in one write that is read whole or not at all.
    ///
    /// # Errors
    /// The disk is full, …
    pub fn note_init(&self, state: &State) -> Result<(), Error> {
        let place = self.path.join(INIT);
        let text = format!("{} {}\n", state.pid, state.start_time);
        let write =
            || fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?.write_all(text.as_bytes());
        Ok(write().doing(|| format!("writing {}", place.display()))?)
    }

    /// Whether this is still the folder of the container whose first process that was, and not of another by its name.
    pub fn is_of(&self, state: &State) -> bool {
        let noted = fs::read_to_string(self.path.join(INIT)).ok().and_then(|text| init(&text));
        noted == Some((state.pid, state.start_time))
    }

    /// The container is whole; from here on the folder is not undone.
    pub fn commit(mut self) {
        self.undo = false;
    }

    /// # Errors
    /// `NotFound`, or `Corrupt`: it was cut short.
    pub fn read(&self) -> Result<State, Error> {
        let path = self.path.join(STATE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && !self.path.is_dir() => return Err(Error::NotFound),
            text => text.doing(|| format!("reading {}", path.display()))?,
        };
        let mut state: State =
            serde_json::from_slice(&text).map_err(|error| Error::Corrupt { path, why: error.to_string() })?;
        let place = self.path.join(INIT);
        match fs::read_to_string(&place) {
            Ok(text) => (state.pid, state.start_time) = init(&text).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => {} // not yet
            Err(error) => Err(error).doing(|| format!("reading {}", place.display()))?,
        }
        Ok(state)
    }

    /// The two fifos that part `create` from `start`, opened so that the child can hold them. Nothing blocks here.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn make_gate(&self) -> Result<Gate, Error> {
        let open = |name: &str, flags| -> Result<OwnedFd, Failed> {
            let path = self.path.join(name);
            rustix::fs::openat(rustix::fs::CWD, &path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
                .doing(|| format!("opening {}", path.display()))
        };
        let folder = self.path.join(RESULT_FOLDER);
        fs::DirBuilder::new().mode(0o700).create(&folder).doing(|| format!("making {}", folder.display()))?;
        for name in [RESULT, GATE] {
            let path = self.path.join(name);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .doing(|| format!("making {}", path.display()))?;
        }
        let gate = open(GATE, OFlags::RDWR)?; // both ends: neither opening nor reading ever finds nobody there
        let both = open(RESULT, OFlags::RDWR)?;
        let result = open(RESULT, OFlags::WRONLY)?; // the only end that outlives this: when it closes, the reader knows
        drop(both);
        Ok(Gate::Fifo { gate, result })
    }

    /// Whether the container's process still waits for `start`.
    pub fn is_gated(&self) -> bool {
        self.path.join(GATE).exists()
    }

    /// Opens the gate and listens: gives what the process says when it fails on its last steps, and nothing when it has
    /// become the program.
    ///
    /// # Errors
    /// The process is gone.
    pub fn open_gate(&self) -> Result<Vec<u8>, Error> {
        let gate = self.path.join(GATE);
        let mut result = fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
            .open(self.path.join(RESULT))
            .doing(|| format!("opening {}", self.path.join(RESULT).display()))?;
        rustix::fs::fcntl_setfl(&result, OFlags::empty()).doing(|| "waiting for the container's process".into())?;
        let opened = fs::OpenOptions::new()
            .write(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
            .open(&gate);
        let mut opened = opened.doing(|| format!("opening {}", gate.display()))?;
        fs::remove_file(&gate).doing(|| format!("removing {}", gate.display()))?;
        opened.write_all(&[0]).doing(|| "starting the container's process".into())?;
        let mut said = Vec::new();
        io::Read::read_to_end(&mut result, &mut said).doing(|| "waiting for the container's process".into())?;
        let _ = fs::remove_file(self.path.join(RESULT)); // of no use any more; `delete` takes it along otherwise
        Ok(said)
    }

    /// Removes the folder and all in it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(mut self) -> Result<(), Error> {
        self.undo = false;
        Ok(remove(&self.path).doing(|| format!("removing {}", self.path.display()))?)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.undo {
            // There is an error on its way that matters more; `delete --force` tries again.
            let _ = remove(&self.path);
        }
    }
}

/// Reads `PID START_TIME`; a line without its end was cut short, and says nothing.
fn init(text: &str) -> Option<(i32, u64)> {
    let (pid, start_time) = text.strip_suffix('\n')?.split_once(' ')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

fn remove(path: &Path) -> io::Result<()> {
    // What is mostly there goes by name; in this order whoever is killed meanwhile leaves a container without a process.
    for name in [INIT, STATE, LOCK] {
        let _ = fs::remove_file(path.join(name));
    }
    match fs::remove_dir(path).or_else(|_| fs::remove_dir_all(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Locks a container's folder. A record lock, because these are not inherited: the child, which lives on, must not hold it.
///
/// Source: fcntl(2), "Advisory record locking".
fn lock(path: &Path) -> Result<OwnedFd, Error> {
    let place = path.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(rustix::fs::CWD, &place, flags, Mode::from_raw_mode(0o600)) {
        Err(Errno::NOENT) => return Err(Error::NotFound),
        file => file.doing(|| format!("opening {}", place.display()))?,
    };
    fcntl_lock(&file, FlockOperation::LockExclusive).doing(|| format!("locking {}", path.display()))?;
    let held = rustix::fs::fstat(&file).doing(|| format!("looking at {}", place.display()))?;
    match rustix::fs::stat(&place) {
        Ok(there) if there.st_ino == held.st_ino => Ok(file),
        _ => Err(Error::NotFound), // whoever had the lock before us was `delete`
    }
}

/// The ids below `root`, in order.
///
/// # Errors
/// The root is there and cannot be read.
pub fn ids(root: &Path) -> Result<Vec<Id>, Failed> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(|| format!("reading {}", root.display()))?,
    };
    let mut ids: Vec<Id> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().to_str().map(str::to_owned))
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| Id::new(&name).ok())
        .collect();
    ids.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(ids)
}

impl State {
    /// Whether the first process lives. A pid that was given to another process since is not it.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_some_and(|(time, dead)| time == self.start_time && !dead)
    }

    /// The first process, if it lives: a handle that no other process can come to be meant by.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, rustix::process::PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(pidfd) // asked after the handle was opened: what is alive now is what it refers to
    }

    /// Asked of the kernel, not remembered.
    pub fn status(&self, entry: &StateDir) -> Status {
        if self.pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        if entry.is_gated() {
            return Status::Created;
        }
        let frozen =
            self.cgroup.clone().is_some_and(|path| crate::cgroup::Cgroup::open(path).frozen().unwrap_or(false));
        if frozen { Status::Paused } else { Status::Running }
    }
}

/// When the process began, in clock ticks since boot, and whether it is dead and only not waited for.
///
/// Source: proc_pid_stat(5), fields 3 and 22; the name in field 2 may hold any bytes, so the search begins behind it.
pub fn start_time(pid: i32) -> Option<(u64, bool)> {
    let mut line = [0; 1024]; // some 350 bytes at most
    let length = io::Read::read(&mut fs::File::open(format!("/proc/{pid}/stat")).ok()?, &mut line).ok()?;
    let behind = line[..length].iter().rposition(|byte| *byte == b')')? + 2;
    let mut fields = std::str::from_utf8(line.get(behind..length)?).ok()?.split(' ');
    let dead = matches!(fields.next()?, "Z" | "X");
    Some((fields.nth(18)?.parse().ok()?, dead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_lead_out_of_its_folder() {
        for good in ["a", "a.b", "web_1", "A+b-c", "..."] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\0"] {
            assert!(Id::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_first_process_is_read_whole_or_not_at_all() {
        assert_eq!(init("12 345\n"), Some((12, 345)));
        for cut in ["", "1", "12 ", "12 34", "x 1\n"] {
            assert_eq!(init(cut), None, "{cut:?}");
        }
    }

    /// A container names its processes, and must not make its first one look dead.
    #[test]
    fn a_process_with_any_name_is_alive() {
        let name = std::fs::read("/proc/thread-self/comm").unwrap();
        for hostile in [&b"a) Z 1 (b"[..], b"\xff\xfe)", b" "] {
            std::fs::write("/proc/thread-self/comm", hostile).unwrap();
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            let (time, dead) = start_time(thread).unwrap();
            assert!(time > 0 && !dead, "{hostile:?}");
        }
        std::fs::write("/proc/thread-self/comm", name).unwrap();
    }

    #[test]
    fn this_process_has_a_start_time_and_is_alive() {
        let (time, dead) = start_time(std::process::id().cast_signed()).unwrap();
        assert!(time > 0 && !dead);
    }
}
