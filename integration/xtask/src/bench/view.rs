//! A mount namespace that shows one cgroup version alone, since a peer refuses the two together.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::sh;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum View {
    V1,
    V2,
}

impl View {
    pub fn name(self) -> &'static str {
        match self {
            View::V1 => "v1",
            View::V2 => "v2",
        }
    }

    /// Shows this version alone at /sys/fs/cgroup. The caller has a mount namespace of its own, and no mount of it
    /// reaches the host's.
    ///
    /// # Errors
    /// A mount was refused.
    pub fn enter(self) -> Result<()> {
        let starter = format!("/proc/{}/ns/mnt", std::os::unix::process::parent_id());
        let apart = fs::read_link(starter)? != fs::read_link("/proc/self/ns/mnt")?;
        ensure!(apart, "a cgroup view needs a mount namespace of its own");
        let cgroup = Path::new("/sys/fs/cgroup");
        match self {
            View::V2 => mount(&["-t", "cgroup2", "cgroup2"], cgroup),
            View::V1 => {
                let hierarchies = v1_hierarchies()?;
                ensure!(!hierarchies.is_empty(), "this machine has no cgroup v1 hierarchy");
                mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], cgroup)?;
                for (name, options) in hierarchies {
                    let place = cgroup.join(&name);
                    fs::create_dir(&place)?;
                    mount(&["-t", "cgroup", "-o", &options, "cgroup"], &place)?;
                }
                Ok(())
            }
        }
    }
}

fn mount(what: &[&str], place: &Path) -> Result<()> {
    sh::run(Command::new("mount").args(what).arg(place))
}

/// Folder name and mount options of each mounted v1 hierarchy. Source: cgroups(7), /proc/PID/cgroup.
fn v1_hierarchies() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup")?.lines() {
        let controllers = line.split(':').nth(1).unwrap_or("");
        match controllers.strip_prefix("name=") {
            Some(name) => found.push((name.to_owned(), format!("none,{controllers}"))),
            None if !controllers.is_empty() => found.push((controllers.to_owned(), controllers.to_owned())),
            None => {}
        }
    }
    Ok(found)
}
