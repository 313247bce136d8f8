//! Where a container's cgroups are, what they count, and whether the kernel killed in them for memory. Read only: making
//! and removing them is the runtime's.

mod devices;
mod io;
pub mod metrics;
mod oom;

use std::fs;
use std::path::{Path, PathBuf};

pub use oom::OomWatch;

const MOUNT: &str = "/sys/fs/cgroup";

/// The cgroups of one process.
#[derive(Debug)]
pub struct Cgroups {
    /// Controllers and folder of each v1 hierarchy.
    hierarchies: Vec<(String, PathBuf)>,
    /// The folder in the one hierarchy of v2, where that is all there is. In a hybrid system v1 has the controllers.
    unified: Option<PathBuf>,
}

impl Cgroups {
    /// None if the process is gone.
    ///
    /// Source: cgroups(7), `/proc/PID/cgroup`.
    pub fn of(pid: u32) -> Option<Cgroups> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(Cgroups::parse(&text, Path::new(MOUNT).join("cgroup.controllers").exists()))
    }

    fn parse(text: &str, unified: bool) -> Cgroups {
        let mut cgroups = Cgroups { hierarchies: Vec::new(), unified: None };
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            if !controllers.is_empty() {
                let folder = controllers.strip_prefix("name=").unwrap_or(controllers);
                cgroups.hierarchies.push((controllers.to_owned(), Path::new(MOUNT).join(folder).join(path)));
            } else if unified {
                cgroups.unified = Some(Path::new(MOUNT).join(path));
            }
        }
        cgroups
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        let has = |controllers: &str| controllers.split(',').any(|controller| controller == name);
        self.hierarchies.iter().find(|(controllers, _)| has(controllers)).map(|(_, path)| path.as_path())
    }

    /// Where memory is counted.
    fn memory(&self) -> Option<&Path> {
        self.unified.as_deref().or_else(|| self.controller("memory"))
    }
}

/// A file of `key value` lines; what is not there counts 0.
fn table(folder: &Path, file: &str) -> impl Fn(&str) -> u64 + use<> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    move |key| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    }
}

/// Puts a process into a cgroup that an administrator named: in each hierarchy that has it.
///
/// # Errors
/// No hierarchy has it, or it does not take the process.
pub fn join(path: &str, pid: u32) -> std::io::Result<()> {
    let path = path.trim_start_matches('/');
    let mut roots = vec![PathBuf::from(MOUNT)];
    if !Path::new(MOUNT).join("cgroup.controllers").exists() {
        roots = fs::read_dir(MOUNT)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    }
    let mut files =
        roots.iter().map(|root| root.join(path).join("cgroup.procs")).filter(|file| file.exists()).peekable();
    if files.peek().is_none() {
        return Err(rustix::io::Errno::NOENT.into());
    }
    files.try_for_each(|file| fs::write(file, pid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_is_found_in_every_layout() {
        let v1 = Cgroups::parse("5:memory:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n", false);
        assert_eq!(v1.memory(), Some(Path::new("/sys/fs/cgroup/memory/a")));
        assert_eq!(v1.controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/b")));
        assert_eq!(v1.unified, None);
        let v2 = Cgroups::parse("0::/kubepods/x\n", true);
        assert_eq!(v2.memory(), Some(Path::new("/sys/fs/cgroup/kubepods/x")));
    }
}
