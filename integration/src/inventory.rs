//! What a machine holds that a container could leave behind: processes, mounts, cgroups and network namespaces whose
//! names tell that they are ours. Taken before and after, the two must be equal.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything that mentions a marker: the private folder or the name of one test.
#[derive(Debug, PartialEq, Eq)]
pub struct Inventory {
    pub processes: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub cgroups: BTreeSet<PathBuf>,
}

impl Inventory {
    /// What mentions one of `markers` in a command line, a mount point or a cgroup's path.
    pub fn of(markers: &[&str]) -> Inventory {
        let marked = |text: &str| markers.iter().any(|marker| text.contains(marker));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut cgroups = BTreeSet::new();
        collect_cgroups(Path::new("/sys/fs/cgroup"), &marked, &mut cgroups);
        Inventory {
            processes: processes().filter(|line| marked(line)).collect(),
            mounts: mounts.lines().filter(|line| marked(line)).map(str::to_owned).collect(),
            cgroups,
        }
    }

    /// What is left once everything marked had time to end: a shim goes by itself, a moment after its last task. Empty as
    /// soon as nothing is left, else what still stands after ten seconds.
    pub fn settled(markers: &[&str]) -> Inventory {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let left = Inventory::of(markers);
            if left.is_empty() || Instant::now() > limit {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The promise that most tests end with.
    ///
    /// # Panics
    /// Something is left: it is listed.
    #[track_caller]
    pub fn expect_none(markers: &[&str]) {
        let left = Inventory::settled(markers);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.cgroups.is_empty()
    }
}

/// `PID: COMMAND LINE` of every process but this one.
fn processes() -> impl Iterator<Item = String> {
    let own = std::process::id();
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        (pid != own).then(|| format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")))
    })
}

fn collect_cgroups(dir: &Path, marked: &dyn Fn(&str) -> bool, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if marked(&entry.file_name().to_string_lossy()) {
                found.insert(path.clone());
            }
            collect_cgroups(&path, marked, found);
        }
    }
}
