//! What the processes of a container hold.
//!
//! Source: proc_pid_fd(5), proc_pid_limits(5).

use std::fs;

use super::cgroup::Cgroup;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    pub files: u64,
    pub sockets: u64,
    /// Of the first one.
    pub open_files_limit: Option<u64>,
}

impl Processes {
    /// `first` is the container's own process. One that ends meanwhile counts for nothing.
    pub fn of(cgroup: &Cgroup, first: u32) -> Processes {
        let mut all = Processes { open_files_limit: open_files_limit(first), ..Processes::default() };
        for pid in cgroup.processes() {
            all.count += 1;
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                all.files += 1;
                let target = fs::read_link(entry.path()).unwrap_or_default();
                all.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        all
    }
}

fn open_files_limit(pid: u32) -> Option<u64> {
    let table = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_processes_hold_files() {
        let own = std::process::id();
        let seen = Processes::of(&Cgroup::of(own).unwrap(), own);
        assert!(seen.count > 0 && seen.files > 0 && seen.open_files_limit.is_some(), "{seen:?}");
    }
}
