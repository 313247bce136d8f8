//! The daemon's own cgroup, if the configuration names one: made where it is missing, and joined before anything is started, so
//! that shims are born inside as well.
//!
//! Hierarchies with a name and no controller are left out: a service manager finds its processes there.
//!
//! Source: cgroups(7); kernel cgroup-v1/cpusets.rst, where a new folder has no processors and no memory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Error, Result};

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mounted: PathBuf,
    /// Whether its folders need processors and memory before anybody can join.
    cpuset: bool,
}

/// Moves this process, with all its threads, into `path` of every hierarchy.
///
/// # Errors
/// The path leads out, or a folder cannot be made or joined.
pub fn join(path: &str) -> Result<()> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let below = Path::new(path.trim_start_matches('/'));
    if !below.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        return Err(Error::InvalidArgument(format!("cgroup.path = {path:?}: it must be a path without . and ..")));
    }
    let mounts = fs::read_to_string(MOUNTS).doing(|| format!("reading {MOUNTS}"))?;
    for hierarchy in hierarchies(&mounts) {
        let folder = hierarchy.make(below)?;
        let joining = || format!("joining cgroup {}", folder.display());
        fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).doing(joining)?;
    }
    Ok(())
}

/// Those with controllers: all of version 1, or else the one of version 2.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let (mut first, mut second) = (Vec::<Hierarchy>::new(), Vec::<Hierarchy>::new());
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mounted) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let options: Vec<&str> = options.split(',').collect();
        let into = match kind {
            "cgroup" if !options.iter().any(|option| option.starts_with("name=")) => &mut first,
            "cgroup2" => &mut second,
            _ => continue,
        };
        if into.iter().all(|known| known.mounted != mounted) {
            into.push(Hierarchy { mounted, cpuset: options.contains(&"cpuset") });
        }
    }
    if first.is_empty() { second } else { first }
}

impl Hierarchy {
    fn make(&self, below: &Path) -> Result<PathBuf> {
        let mut folder = self.mounted.clone();
        for part in below {
            let above = folder.clone();
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(format!("making cgroup {}", folder.display()), &error));
                }
                _ => {}
            }
            if self.cpuset {
                inherit(&above, &folder)?;
            }
        }
        Ok(folder)
    }
}

fn inherit(above: &Path, folder: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let doing = || format!("giving {} its {name}", folder.display());
        if fs::read_to_string(folder.join(name)).doing(doing)?.trim().is_empty() {
            let value = fs::read(above.join(name)).doing(doing)?;
            fs::write(folder.join(name), value).doing(doing)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_with_controllers_are_joined_and_version_two_only_where_it_is_alone() {
        let unified = "30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mixed = format!(
            "29 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n{unified}\
             31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             32 29 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             33 29 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        );
        let of = |name: &str, cpuset| Hierarchy { mounted: Path::new("/sys/fs/cgroup").join(name), cpuset };
        assert_eq!(hierarchies(&mixed), [of("cpuset", true), of("memory", false)]);
        assert_eq!(hierarchies(unified), [of("unified", false)]);
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in ["../x", "/a/../..", "a/./b/.."] {
            assert!(matches!(join(path), Err(Error::InvalidArgument(_))), "{path}");
        }
    }
}
