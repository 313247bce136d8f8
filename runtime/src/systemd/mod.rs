//! The systemd cgroup driver: a container's cgroup belongs to a scope, a unit of systemd's that exists while it has
//! processes.
//!
//! ```text
//! linux.cgroupsPath "slice:prefix:name" ─▶ Unit       its name, and where its cgroup will be
//! linux.resources                       ─▶ limits     the same limits in systemd's words, so that it keeps to them
//!                                          Started    the scope, existing, with a process of ours to hold it
//! ```
//!
//! A scope cannot be made without a process. The container's first one cannot be that: it is to be born inside, with all
//! limits set. So a process that does nothing holds the scope until it is there.
//!
//! Sources: systemd's org.freedesktop.systemd1(5), systemd.scope(5), systemd.resource-control(5), "The New Control Group
//! Interfaces"; runc's docs/systemd.md.

mod holder;
mod manager;
mod properties;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use holder::Holder;
use manager::Manager;
pub use properties::limits;

use crate::cgroup::CgroupPath;
use crate::dbus::{self, Value};
use crate::error::Failed;
use crate::spec::Resources;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--systemd-cgroup: systemd is not running here, /run/systemd/system is missing")]
    NotRunning,
    #[error("{field}: {why}")]
    Refused { field: String, why: String },
    #[error("{doing}: {source}")]
    Asking { doing: String, source: dbus::Error },
    #[error("{doing}: systemd's job ended with {result:?}")]
    Job { doing: String, result: String },
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// A name and a value, as systemd takes them.
type Property = (String, Value);

/// A container's scope, as the state file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    slice: String,
    /// Whether it belongs to the user's systemd, and not to the system's.
    user: bool,
}

impl Unit {
    /// `path` is `linux.cgroupsPath`: `slice:prefix:name`, of which the scope `prefix-name.scope` in that slice is made.
    /// Without one the container's id is the name.
    pub fn resolve(path: &str, id: &str, user: bool) -> Result<Unit, Error> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(Error::NotRunning);
        }
        Unit::of(path, id, user)
    }

    fn of(path: &str, id: &str, user: bool) -> Result<Unit, Error> {
        let refused = |why: String| Error::Refused { field: "linux.cgroupsPath".into(), why };
        let (slice, prefix, name) = match path.split(':').collect::<Vec<_>>()[..] {
            [""] => ("", "tare", id),
            [slice, prefix, name] => (slice, prefix, name),
            _ => return Err(refused(format!("{path:?} is not slice:prefix:name, which --systemd-cgroup needs"))),
        };
        if name.is_empty() || name.ends_with(".slice") {
            return Err(refused(format!("{name:?} is not the name of a scope: processes cannot be in a slice itself")));
        }
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if unit.len() > 255 || !unit.chars().all(allowed) {
            return Err(refused(format!("{unit:?} is not the name of a unit")));
        }
        let default = if user { "user.slice" } else { "system.slice" };
        let slice = if slice.is_empty() { default } else { slice };
        expand(slice).ok_or_else(|| refused(format!("{slice:?} is not the name of a slice")))?;
        Ok(Unit { name: unit, slice: slice.to_owned(), user })
    }

    /// Where its cgroup will be.
    pub fn cgroup(&self) -> Result<CgroupPath, Error> {
        let mut below = PathBuf::new();
        if self.user {
            // The user's systemd has a cgroup of its own, below which its slices are.
            let own = self.manager()?.text("ControlGroup").map_err(|source| self.asking("looking for", source))?;
            below.push(own.trim_start_matches('/'));
        }
        below.push(expand(&self.slice).unwrap_or_default());
        below.push(&self.name);
        Ok(CgroupPath::below_mounts(&below)?)
    }

    /// Makes the scope, with what `annotations` and `unified` ask of it, and holds it.
    pub fn start(
        &self,
        id: &str,
        annotations: &BTreeMap<String, String>,
        resources: &Resources,
        version_1: bool,
    ) -> Result<Started, Error> {
        let mut properties = properties::of_scope(id, &self.slice, version_1);
        properties.extend(properties::from_annotations(annotations)?);
        properties.extend(properties::oom_policy(resources));
        let mut manager = self.manager()?;
        let holder = Holder::start()?;
        let pids = Value::Array("u".into(), vec![Value::U32(holder.pid().cast_unsigned())]);
        properties.push(("PIDs".into(), pids));
        let mut started = manager.start(&self.name, &properties);
        if matches!(&started, Err(error) if error.is("org.freedesktop.systemd1.UnitExists")) {
            // One that failed before stays until somebody has looked at it.
            let _ = manager.reset_failed(&self.name);
            started = manager.start(&self.name, &properties);
        }
        let job = started.map_err(|source| self.asking("starting", source))?;
        let started = Started { unit: self.clone(), manager, holder: Some(holder), undo: true };
        self.wait(started, &job)
    }

    fn wait(&self, mut started: Started, job: &str) -> Result<Started, Error> {
        let result = started.manager.wait(job).map_err(|source| self.asking("starting", source))?;
        match result.as_str() {
            "done" => Ok(started),
            _ => Err(Error::Job { doing: format!("starting the unit {}", self.name), result }),
        }
    }

    /// Tells systemd of new limits.
    pub fn set_limits(&self, resources: &Resources, version_1: bool) -> Result<(), Error> {
        self.set(&mut self.manager()?, resources, version_1, false)
    }

    fn set(
        &self,
        manager: &mut Manager,
        resources: &Resources,
        version_1: bool,
        with_devices: bool,
    ) -> Result<(), Error> {
        let idle = manager.version() >= properties::KNOWS_IDLE;
        let mut properties = limits(resources, version_1, idle)?;
        if with_devices {
            properties.extend(properties::devices(resources)?);
        }
        manager.set(&self.name, &properties).map_err(|source| self.asking("setting the limits of", source))
    }

    /// Stops the scope, which ends its processes, and forgets that it may have failed. One that is gone is no error.
    pub fn stop(&self) -> Result<(), Error> {
        self.stop_by(&mut self.manager()?)
    }

    fn stop_by(&self, manager: &mut Manager) -> Result<(), Error> {
        let stopped = match manager.stop(&self.name) {
            Ok(job) => manager.wait(&job).map(drop),
            Err(error) if error.is("org.freedesktop.systemd1.NoSuchUnit") => Ok(()),
            Err(error) => Err(error),
        };
        stopped.map_err(|source| self.asking("stopping", source))?;
        match manager.reset_failed(&self.name) {
            Err(error) if !error.is("org.freedesktop.systemd1.NoSuchUnit") => {
                Err(self.asking("forgetting the failure of", error))
            }
            _ => Ok(()),
        }
    }

    fn manager(&self) -> Result<Manager, Error> {
        Manager::connect(self.user).map_err(|source| self.asking("asking systemd for", source))
    }

    fn asking(&self, verb: &str, source: dbus::Error) -> Error {
        Error::Asking { doing: format!("{verb} the unit {}", self.name), source }
    }
}

/// A scope that was just made. Dropped before [`Started::keep`], it is stopped again.
pub struct Started {
    unit: Unit,
    manager: Manager,
    holder: Option<Holder>,
    undo: bool,
}

impl Started {
    /// The process that is in the scope for the time being.
    pub fn holder(&self) -> Option<i32> {
        self.holder.as_ref().map(Holder::pid)
    }

    /// The container's first process is there now: the holder goes, and systemd is told the limits.
    pub fn hand_over(&mut self, resources: &Resources, version_1: bool) -> Result<(), Error> {
        drop(self.holder.take());
        self.unit.set(&mut self.manager, resources, version_1, true)
    }

    /// From here on it outlives this value.
    pub fn keep(&mut self) {
        self.undo = false;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.holder.take());
        if self.undo {
            // There is an error on its way that matters more; `delete --force` tries again.
            let _ = self.unit.stop_by(&mut self.manager);
        }
    }
}

/// Where a slice's cgroup is: `a-b.slice` is `a.slice/a-b.slice`, `-.slice` the root. None if it is not a slice's name.
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.is_empty() && !name.contains('/'))?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Some(path);
    }
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        so_far += part;
        path.push(format!("{so_far}.slice"));
        so_far.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(path: &str) -> Result<(String, String), String> {
        Unit::of(path, "box", false).map(|unit| (unit.slice, unit.name)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_a_slice_and_the_parts_of_a_name() {
        for (path, slice, name) in [
            ("", "system.slice", "tare-box.scope"),
            (":crio:abc", "system.slice", "crio-abc.scope"),
            ("machine.slice:libpod:x", "machine.slice", "libpod-x.scope"),
            ("-.slice::x", "-.slice", "x.scope"),
        ] {
            assert_eq!(unit(path).unwrap(), (slice.into(), name.into()), "{path}");
        }
        assert_eq!(Unit::of("", "box", true).unwrap().slice, "user.slice");
    }

    #[test]
    fn what_cannot_be_a_unit_is_refused_by_its_field() {
        for (path, why) in [
            ("/a/b", "\"/a/b\" is not slice:prefix:name, which --systemd-cgroup needs"),
            ("a.slice:b", "\"a.slice:b\" is not slice:prefix:name, which --systemd-cgroup needs"),
            ("a.slice:p:", "\"\" is not the name of a scope: processes cannot be in a slice itself"),
            ("a.slice:p:b.slice", "\"b.slice\" is not the name of a scope: processes cannot be in a slice itself"),
            ("a:p:n", "\"a\" is not the name of a slice"),
            ("a--b.slice:p:n", "\"a--b.slice\" is not the name of a slice"),
            ("a.slice:p:../n", "\"p-../n.scope\" is not the name of a unit"),
        ] {
            assert_eq!(unit(path).unwrap_err(), format!("linux.cgroupsPath: {why}"), "{path}");
        }
    }

    #[test]
    fn dashes_in_a_slice_are_folders() {
        let expanded = |slice| expand(slice).map(|path| path.display().to_string());
        assert_eq!(expanded("-.slice").as_deref(), Some(""));
        assert_eq!(expanded("a.slice").as_deref(), Some("a.slice"));
        assert_eq!(expanded("a-b-c.slice").as_deref(), Some("a.slice/a-b.slice/a-b-c.slice"));
        for bad in ["", ".slice", "a", "-a.slice", "a-.slice", "a/b.slice"] {
            assert_eq!(expanded(bad), None, "{bad}");
        }
    }
}
