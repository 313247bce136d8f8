//! What processes cost, from their files below `/proc`.
//!
//! Source: proc_pid_smaps(5), proc_pid_stat(5).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The shims of a daemon, and what they run for pods: a process that holds the namespaces, one that writes logs.
pub struct Shims {
    own: Vec<u32>,
    helpers: Vec<u32>,
}

impl Shims {
    /// Those whose command line names something below `dir`.
    pub fn of(dir: &Path) -> Result<Shims> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let (mut own, mut lines) = (Vec::new(), HashMap::new());
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            children.entry(parent.unwrap_or_default()).or_default().push(pid);
            let program = line.split(' ').next().unwrap_or_default();
            if program.contains("containerd-shim") && line.contains(&*dir.to_string_lossy()) {
                own.push(pid);
            }
            lines.insert(pid, line);
        }
        // The containers themselves sleep or print; whatever else a shim has below it is for the pod.
        let of_container = |pid: &u32| lines.get(pid).is_some_and(|line| line.contains("sleep 1000000 "));
        let pause = |pid: &u32| lines.get(pid).is_some_and(|line| line.starts_with("/sleep "));
        let below = own.iter().flat_map(|shim| children.get(shim).into_iter().flatten()).copied();
        let helpers = below.filter(|pid| !own.contains(pid)).filter(|pid| pause(pid) || !of_container(pid)).collect();
        Ok(Shims { own, helpers })
    }

    pub fn processor_time(&self) -> Result<Duration> {
        self.own.iter().chain(&self.helpers).map(|pid| processor_time(*pid)).sum()
    }

    /// In KiB.
    pub fn proportional_set_size(&self) -> Result<u64> {
        self.own.iter().map(|pid| proportional_set_size(*pid)).sum()
    }

    pub fn helpers_proportional_set_size(&self) -> Result<u64> {
        self.helpers.iter().map(|pid| proportional_set_size(*pid)).sum()
    }
}

/// Memory of a process in KiB, shared pages divided by those who share them.
pub fn proportional_set_size(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| format!("Pss in {path}"))?;
    line.split_whitespace().next().and_then(|word| word.parse().ok()).with_context(|| format!("a number in {path}"))
}

/// Processor time of a process, threads that have ended among it: proc_pid_stat(5) counts in hundredths.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
}
