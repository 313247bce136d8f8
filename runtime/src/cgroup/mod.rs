//! A container's cgroups: made with their limits before anything runs in them, joined, watched, frozen, killed, removed.
//!
//! ```text
//! linux.cgroupsPath ─▶ CgroupPath   where they are; goes into the state file before they are made
//! linux.resources   ─▶ Settings     which files get which values; whatever cannot be set is refused here
//!                      Cgroup       the directories, existing
//! ```
//!
//! Version 2 (unified) is one directory. Version 1 has one for each hierarchy of controllers; a hybrid host, where version
//! 2 is mounted beside them without the controllers, is treated as version 1. Callers see no difference: [`Join`] says how
//! a process gets in, and that is never a write of its pid to `cgroup.procs`, since the kernel makes such a write wait for
//! an RCU grace period, 5 to 14 ms.
//!
//! Sources: runtime-spec config-linux.md, "Control groups"; cgroups(7); kernel cgroup-v1/, cgroup-v2.rst.

mod below;
mod devices;
mod file;
pub mod oom;
mod path;
mod settings;
mod stats;
mod v1;
mod v2;

use std::os::fd::OwnedFd;

use rustix::io::Errno;

pub use below::{Below, join as below};
pub use devices::{DeviceList, Devices, list_devices};
pub use path::{CgroupPath, Hierarchy};
pub use settings::Settings;
pub use stats::Stats;
pub use v2::{unified_memory_swap, weight_from_shares};

use crate::error::{Doing as _, Failed};
use crate::spec::Resources;

/// Why a cgroup cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Known before anything was made. The field is named from the root of `config.json`.
    #[error("{field}: {why}")]
    Refused { field: String, why: String },
    #[error("container's cgroup is not empty: the processes in {path} are not this container's")]
    InUse { path: String },
    #[error("container's cgroup unexpectedly frozen: {path}: nothing could start in it")]
    Frozen { path: String },
    #[error("cgroup {path} is still in use after {seconds} s: device or resource busy")]
    Busy { path: String, seconds: u64 },
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Error {
    fn refused(field: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Refused { field: field.into(), why: why.into() }
    }
}

/// How a process joins.
#[derive(Debug, Default)]
pub struct Join {
    /// The directory that `clone3` takes with `CLONE_INTO_CGROUP`: the child is born inside.
    pub into: Option<OwnedFd>,
    /// Files that the process itself writes `0` to. The kernel then moves the writer alone, without the wait.
    pub tasks: Vec<OwnedFd>,
}

/// The cgroups of a container. Dropped before [`Cgroup::keep`], they are removed again.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    undo: bool,
}

impl Cgroup {
    /// Makes the directories and sets their limits. If systemd has them made, a process is in there that holds them for it;
    /// then the limit on processes waits for an [`update`](Cgroup::update), when that is gone.
    ///
    /// # Errors
    /// `InUse` if there are other processes already. On every error, what was made is removed again.
    pub fn create(path: &CgroupPath, settings: &Settings, holder: Option<i32>) -> Result<Cgroup, Error> {
        let before = Cgroup::open(path.clone());
        if before.exists() && before.frozen()? {
            return Err(Error::Frozen { path: before.lead().display().to_string() });
        }
        let made = match path {
            CgroupPath::V1 { hierarchies } => v1::create(hierarchies, settings, holder),
            CgroupPath::V2 { root, path } => v2::create(root, path, settings, holder),
        };
        if made.is_err() {
            // None of our processes is in there, so those that are not empty are not ours and stay.
            for directory in path.directories() {
                let _ = rustix::fs::rmdir(directory);
            }
        }
        made.map(|()| Cgroup { path: path.clone(), undo: true })
    }

    /// The cgroups of a container that exists, as its state file has them.
    pub fn open(path: CgroupPath) -> Cgroup {
        Cgroup { path, undo: false }
    }

    /// From here on they outlive this value.
    pub fn keep(&mut self) {
        self.undo = false;
    }

    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Opens the ways in.
    pub fn join(&self) -> Result<Join, Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => Ok(Join { into: None, tasks: v1::tasks(hierarchies)? }),
            CgroupPath::V2 { path, .. } => Ok(Join { into: Some(v2::directory(path)?), tasks: Vec::new() }),
        }
    }

    /// Opens the ways in to where `pid`, a process of the container, is now. On version 2 that can be below the cgroup that
    /// we made, which then has cgroups but takes no processes: a container with systemd or another runtime inside.
    pub fn join_beside(&self, pid: i32) -> Result<Join, Error> {
        match &self.path {
            CgroupPath::V1 { .. } => self.join(),
            CgroupPath::V2 { root, path } => {
                let now = path::unified_of(root, pid).filter(|now| now.starts_with(path));
                Ok(Join { into: Some(v2::directory(now.as_deref().unwrap_or(path))?), tasks: Vec::new() })
            }
        }
    }

    /// Moves a process in, wherever it is now. It waits for a grace period: nothing that is in a hurry comes this way.
    pub fn add(&self, pid: i32) -> Result<(), Error> {
        let folders = self.path.directories().into_iter().filter(|folder| folder.is_dir());
        for procs in folders.map(|folder| folder.join("cgroup.procs")) {
            file::write(&procs, &pid.to_string()).doing(|| format!("moving process {pid} to {}", procs.display()))?;
        }
        Ok(())
    }

    /// The directory whose processes are stopped together, if there is one.
    pub fn freezer(&self) -> Option<std::path::PathBuf> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => {
                hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")).map(|hierarchy| hierarchy.path.clone())
            }
            CgroupPath::V2 { path, .. } => Some(path.clone()),
        }
    }

    /// The directories that exist, with the controllers of each: what a container's own `/sys/fs/cgroup` is made of.
    pub fn directories(&self) -> Vec<&Hierarchy> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => hierarchies.iter().filter(|hierarchy| hierarchy.path.is_dir()).collect(),
            CgroupPath::V2 { .. } => Vec::new(),
        }
    }

    pub fn exists(&self) -> bool {
        self.lead().is_dir()
    }

    /// All processes, those in cgroups that the container made below its own included, in no order.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        file::pids(self.lead()).map_err(Error::from)
    }

    /// Stops all processes, and returns when they have stopped.
    pub fn freeze(&self) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::freeze(hierarchies),
            CgroupPath::V2 { path, .. } => v2::freeze(path),
        }
    }

    pub fn thaw(&self) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::thaw(hierarchies),
            CgroupPath::V2 { path, .. } => v2::thaw(path),
        }
    }

    /// Whether the container is paused. A cgroup that is gone is not.
    pub fn frozen(&self) -> Result<bool, Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::frozen(hierarchies),
            CgroupPath::V2 { path, .. } => v2::frozen(path),
        }
    }

    /// Kills all processes, frozen ones too. Those that are gone already are no error.
    pub fn kill(&self) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::kill(hierarchies),
            CgroupPath::V2 { path, .. } => v2::kill(path),
        }
    }

    /// What the container has used, in the form of `tare events`.
    pub fn stats(&self) -> Result<Stats, Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::stats(hierarchies),
            CgroupPath::V2 { path, .. } => v2::stats(path),
        }
    }

    /// Adds to an update the limits that those in it depend on, as they are now: the period of a quota and the quota of a
    /// period, and the limit that one on memory and swap together includes.
    pub fn complete(&self, resources: &mut Resources) {
        let (quota, period, memory) = match &self.path {
            CgroupPath::V1 { hierarchies } => v1::present(hierarchies),
            CgroupPath::V2 { path, .. } => v2::present(path),
        };
        if let Some(cpu) = &mut resources.cpu {
            let given = (cpu.quota.is_some_and(|quota| quota != 0), cpu.period.is_some_and(|period| period != 0));
            match given {
                (true, false) => cpu.period = period,
                (false, true) => cpu.quota = quota,
                _ => {}
            }
        }
        if let Some(limits) = &mut resources.memory
            && limits.swap.is_some_and(|swap| swap > 0)
            && limits.limit.is_none_or(|limit| limit == 0)
        {
            limits.limit = memory;
        }
    }

    /// Sets other limits. Devices are not changed: runtimes before us never did, and `settings` made for an update lack them.
    pub fn update(&self, settings: &Settings) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::update(hierarchies, settings),
            CgroupPath::V2 { path, .. } => v2::update(path, settings),
        }
    }

    /// Gives the cgroup to a user who may then make others below it, as the kernel lets it be done on version 2 only.
    ///
    /// Source: cgroups(7), "Cgroups v2 delegation".
    pub fn delegate(&self, uid: u32) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { .. } => Ok(()),
            CgroupPath::V2 { path, .. } => v2::delegate(path, uid),
        }
    }

    /// Removes the directories and all below them. Waits for processes that are on their way out; absent ones are no error.
    pub fn remove(mut self) -> Result<(), Error> {
        self.undo = false;
        self.remove_all()
    }

    /// Removes the directories, after killing what may still be inside.
    pub fn clear(self) -> Result<(), Error> {
        // Mostly nothing is, and then this is all there is to ask.
        if !matches!(rustix::fs::rmdir(self.lead()), Ok(()) | Err(Errno::NOENT)) && !self.pids()?.is_empty() {
            self.kill()?;
        }
        self.remove()
    }

    fn remove_all(&self) -> Result<(), Error> {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::remove(hierarchies),
            CgroupPath::V2 { path, .. } => v2::remove(path),
        }
    }

    /// The directory that every process of the container is in.
    pub fn lead(&self) -> &std::path::Path {
        match &self.path {
            CgroupPath::V1 { hierarchies } => v1::lead(hierarchies),
            CgroupPath::V2 { path, .. } => path,
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.undo {
            // There is an error on its way that matters more; `delete --force` tries again.
            let _ = self.remove_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A cgroup of its own for each test, on whatever version this host has.
    fn path(name: &str) -> CgroupPath {
        CgroupPath::resolve(Some(&format!("/tare-test-{}-{name}", std::process::id())), "id").unwrap()
    }

    fn make(path: &CgroupPath, resources: serde_json::Value) -> Result<Cgroup, Error> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        Cgroup::create(path, &Settings::for_create(path, &resources)?, None)
    }

    /// A process that moved itself in and waits for the end of its input, with as many children as asked for.
    fn joined(cgroup: &Cgroup, children: usize) -> Child {
        let join = cgroup.join().unwrap();
        let mut ways: Vec<String> = Vec::new();
        match &cgroup.path {
            CgroupPath::V1 { hierarchies } => {
                assert!(join.into.is_none() && !join.tasks.is_empty());
                ways.extend(
                    hierarchies.iter().filter(|h| h.path.is_dir()).map(|h| format!("{}/tasks", h.path.display())),
                );
                assert_eq!(ways.len(), join.tasks.len());
            }
            CgroupPath::V2 { path, .. } => {
                assert!(join.into.is_some() && join.tasks.is_empty());
                ways.push(format!("{}/cgroup.procs", path.display()));
            }
        }
        let enter: String = ways.iter().map(|way| format!("echo 0 > {way}; ")).collect();
        let script = format!("{enter} for i in $(seq {children}); do sleep 1000 & done; echo in; read x");
        let mut shell = Command::new("sh");
        let mut child = shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut word = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        child
    }

    #[test]
    fn a_cgroup_comes_with_its_limits_and_goes_without_a_trace() {
        let path = path("limits");
        let cgroup = make(&path, serde_json::json!({})).unwrap();
        assert!(cgroup.exists());
        let mut child = joined(&cgroup, 2);
        let pids = cgroup.pids().unwrap();
        assert!(pids.len() >= 3 && pids.contains(&(child.id() as i32)), "{pids:?}");
        cgroup.kill().unwrap();
        child.wait().unwrap();
        cgroup.remove().unwrap();
        assert!(!Cgroup::open(path.clone()).exists());
        assert!(Cgroup::open(path.clone()).pids().unwrap().is_empty());
        Cgroup::open(path).remove().unwrap(); // once more is no error
    }

    #[test]
    fn what_still_runs_inside_is_killed_before_it_is_removed() {
        let path = path("cleared");
        let cgroup = make(&path, serde_json::json!({})).unwrap();
        let mut child = joined(&cgroup, 1);
        cgroup.clear().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!Cgroup::open(path.clone()).exists());
        Cgroup::open(path).clear().unwrap(); // once more is no error
    }

    #[test]
    fn one_more_process_goes_where_the_first_has_moved() {
        let path = path("beside");
        let cgroup = make(&path, serde_json::json!({})).unwrap();
        let mut child = joined(&cgroup, 0);
        let pid = child.id() as i32;
        let join = cgroup.join_beside(pid).unwrap();
        match &path {
            CgroupPath::V1 { .. } => assert!(!join.tasks.is_empty()),
            CgroupPath::V2 { path, .. } => {
                let inner = path.join("inner");
                std::fs::create_dir(&inner).unwrap();
                std::fs::write(inner.join("cgroup.procs"), pid.to_string()).unwrap();
                let into = cgroup.join_beside(pid).unwrap().into.unwrap();
                let there =
                    std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&into))).unwrap();
                assert!(there.ends_with("inner"), "{there:?}");
            }
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_frozen_cgroup_is_still_and_can_be_killed() {
        let cgroup = make(&path("frozen"), serde_json::json!({})).unwrap();
        let mut child = joined(&cgroup, 1);
        assert!(!cgroup.frozen().unwrap());
        cgroup.freeze().unwrap();
        assert!(cgroup.frozen().unwrap());
        cgroup.thaw().unwrap();
        assert!(!cgroup.frozen().unwrap());
        cgroup.freeze().unwrap();
        cgroup.kill().unwrap();
        child.wait().unwrap();
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_cgroup_with_processes_is_nobody_elses() {
        let path = path("taken");
        let mut first = make(&path, serde_json::json!({})).unwrap();
        first.keep();
        let mut child = joined(&first, 0);
        let error = make(&path, serde_json::json!({})).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(first.pids().unwrap().contains(&(child.id() as i32)));
        drop(child.stdin.take());
        child.wait().unwrap();
        first.remove().unwrap();
    }

    #[test]
    fn what_is_refused_leaves_nothing() {
        let path = path("refused");
        let error = make(&path, serde_json::json!({"memory": {"limit": 100, "swap": 50}})).unwrap_err();
        let expect = "linux.resources.memory.swap: 50 is below memory.limit (100), which it includes";
        assert_eq!(error.to_string(), expect);
        for (resources, field) in [
            (serde_json::json!({"cpu": {"cpus": "0-4294967295"}}), "cpu.cpus"),
            (serde_json::json!({"cpu": {"mems": "3-1"}}), "cpu.mems"),
            (serde_json::json!({"memory": {"kernel": -5}}), "memory.kernel"),
            (serde_json::json!({"memory": {"useHierarchy": false}}), "memory.useHierarchy"),
            (serde_json::json!({"memory": {"limit": -2}}), "memory.limit"),
        ] {
            let error = make(&path, resources).unwrap_err().to_string();
            assert!(error.starts_with(&format!("linux.resources.{field}: ")), "{error}");
        }
        assert!(!Cgroup::open(path).exists());
    }

    #[test]
    fn a_path_survives_the_state_file() {
        let path = path("saved");
        let text = serde_json::to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<CgroupPath>(&text).unwrap(), path);
    }

    #[test]
    fn limits_are_what_the_kernel_then_says() {
        let path = path("values");
        let CgroupPath::V1 { hierarchies } = &path else { return version_2_values(&path) };
        let resources = serde_json::json!({
            "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 33},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        let cgroup = make(&path, resources).unwrap();
        let value = |controller: &str, file: &str| {
            let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(controller)).unwrap();
            file::read(&hierarchy.path.join(file)).unwrap()
        };
        assert_eq!(value("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(value("memory", "memory.memsw.limit_in_bytes"), (96 << 20).to_string());
        assert_eq!(value("cpu", "cpu.shares"), "512");
        assert_eq!(value("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(value("cpu", "cpu.cfs_period_us"), "200000");
        assert_eq!(value("cpuset", "cpuset.cpus"), "0");
        assert_eq!(value("pids", "pids.max"), "33");
        assert!(!value("devices", "devices.list").contains("a *:*"));

        // Up and down again: whichever order the kernel wants.
        for (limit, swap) in [(256, 300), (16, 20)] {
            let resources: Resources =
                serde_json::from_value(serde_json::json!({"memory": {"limit": limit << 20, "swap": swap << 20}}))
                    .unwrap();
            cgroup.update(&Settings::for_update(&path, &resources).unwrap()).unwrap();
            assert_eq!(value("memory", "memory.limit_in_bytes"), (limit << 20).to_string());
            assert_eq!(value("memory", "memory.memsw.limit_in_bytes"), (swap << 20).to_string());
        }
        let stats = cgroup.stats().unwrap();
        assert_eq!((stats.pids.limit, stats.memory.usage.limit), (33, 16 << 20));
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_container_that_can_look_has_a_cgroup_in_each_hierarchy() {
        let path = path("visible");
        let CgroupPath::V1 { hierarchies } = &path else { return };
        let mut settings = Settings::for_create(&path, &Resources::default()).unwrap();
        settings.visible = true;
        let cgroup = Cgroup::create(&path, &settings, None).unwrap();
        assert_eq!(cgroup.directories().len(), hierarchies.len());
        assert_eq!(cgroup.join().unwrap().tasks.len(), hierarchies.len());
        cgroup.remove().unwrap();
    }

    /// On version 1 a container has no cgroup where it has no limit; a later limit must hold for the processes it has.
    #[test]
    fn a_later_limit_holds_for_the_processes_there_are() {
        let path = path("later");
        let cgroup = make(&path, serde_json::json!({})).unwrap();
        let mut child = joined(&cgroup, 1);
        let resources: Resources = serde_json::from_value(serde_json::json!({"cpu": {"cpus": "0"}})).unwrap();
        match Settings::for_update(&path, &resources) {
            Ok(settings) => {
                cgroup.update(&settings).unwrap();
                let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
                assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
            }
            Err(error) => assert!(error.to_string().contains("this host has no cpuset controller"), "{error}"),
        }
        cgroup.clear().unwrap();
        child.wait().unwrap();
    }

    /// Version 2 has its values only where its controllers are: what this host lacks is refused, what it has is set.
    fn version_2_values(path: &CgroupPath) {
        let CgroupPath::V2 { root, path: directory } = path else { return };
        let available = file::read(&root.join("cgroup.controllers")).unwrap();
        for (controller, resources, file, expect) in [
            ("memory", serde_json::json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}}), "memory.max", "67108864"),
            ("cpu", serde_json::json!({"cpu": {"shares": 1024, "quota": 50_000}}), "cpu.max", "50000 100000"),
            ("cpu", serde_json::json!({"cpu": {"shares": 1024}}), "cpu.weight", "100"),
            ("pids", serde_json::json!({"pids": {"limit": 33}}), "pids.max", "33"),
            ("cpuset", serde_json::json!({"cpu": {"cpus": "0"}}), "cpuset.cpus", "0"),
            ("memory", serde_json::json!({"unified": {"memory.high": "1048576"}}), "memory.high", "1048576"),
        ] {
            let made = make(path, resources);
            if available.split(' ').any(|name| name == controller) {
                let cgroup = made.unwrap();
                assert_eq!(file::read(&directory.join(file)).unwrap(), expect, "{file}");
                cgroup.stats().unwrap();
                cgroup.remove().unwrap();
            } else {
                let error = made.unwrap_err().to_string();
                assert!(error.contains(&format!("this host has no {controller} controller")), "{error}");
            }
        }
    }

    #[test]
    fn devices_that_are_not_named_are_closed() {
        let cgroup =
            make(&path("devices"), serde_json::json!({"devices": [{"allow": false, "access": "rwm"}]})).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // mem, made by hand: exists everywhere, and its opening by root fails only for the cgroup.
        let node = dir.path().join("mem");
        let device = rustix::fs::makedev(1, 1);
        rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, 0o600.into(), device)
            .unwrap();
        let enter = match cgroup.path() {
            CgroupPath::V1 { hierarchies } => {
                let devices = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")).unwrap();
                format!("echo 0 > {}/tasks", devices.path.display())
            }
            CgroupPath::V2 { path, .. } => format!("echo 0 > {}/cgroup.procs", path.display()),
        };
        let open = format!("{enter}; (: < {}) && echo open; (: < /dev/null) && echo null", node.display());
        let output = Command::new("sh").args(["-c", &open]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "null\n", "{}", String::from_utf8_lossy(&output.stderr));
        cgroup.remove().unwrap();
    }
}
