//! What a container's cgroups count, in containerd's messages.
//!
//! Source: kernel cgroup-v1/, cgroup-v2.rst; containerd/cgroups cgroup1/stats and cgroup2/stats.

use std::fs;
use std::path::{Path, PathBuf};

use prost_types::Any;
use tare_proto::any;
use tare_proto::io::containerd::cgroups::{v1, v2};

const MOUNT: &str = "/sys/fs/cgroup";

/// Where a process's cgroups are.
struct Cgroups {
    /// Controllers and folder of each v1 hierarchy.
    v1: Vec<(String, PathBuf)>,
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// Source: cgroups(7), /proc/PID/cgroup.
    fn of(pid: u32) -> Option<Cgroups> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut cgroups = Cgroups { v1: Vec::new(), v2: None };
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            if controllers.is_empty() {
                cgroups.v2 =
                    Some(Path::new(MOUNT).join(path)).filter(|_| Path::new(MOUNT).join("cgroup.controllers").exists());
            } else {
                let name = controllers.strip_prefix("name=").unwrap_or(controllers);
                cgroups.v1.push((controllers.to_owned(), Path::new(MOUNT).join(name).join(path)));
            }
        }
        Some(cgroups)
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|(controllers, _)| controllers.split(',').any(|c| c == name))
            .map(|(_, path)| path.as_path())
    }
}

/// All processes of the cgroup that `pid` is in.
pub fn pids(pid: u32) -> Vec<u32> {
    let Some(cgroups) = Cgroups::of(pid) else { return Vec::new() };
    let folder = cgroups.v2.as_deref().or_else(|| cgroups.controller("pids"));
    let mut pids = Vec::new();
    if let Some(folder) = folder.filter(|folder| *folder != Path::new(MOUNT)) {
        collect(folder, &mut pids);
    }
    pids
}

fn collect(folder: &Path, pids: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// The metrics of the cgroup that `pid` is in; none if it is gone.
pub fn of(pid: u32) -> Option<Any> {
    let cgroups = Cgroups::of(pid)?;
    Some(match &cgroups.v2 {
        Some(folder) => any::pack("io.containerd.cgroups.v2.Metrics", &unified(folder)),
        None => any::pack("io.containerd.cgroups.v1.Metrics", &hierarchies(&cgroups)),
    })
}

/// A file with one number; `max` is the largest.
fn number(folder: &Path, file: &str) -> u64 {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of `key value` lines.
fn table(folder: &Path, file: &str) -> impl Fn(&str) -> u64 + use<> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    move |key| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    }
}

fn hierarchies(cgroups: &Cgroups) -> v1::Metrics {
    let mut metrics = v1::Metrics::default();
    if let Some(folder) = cgroups.controller("pids") {
        let limit = number(folder, "pids.max");
        metrics.pids = Some(v1::PidsStat {
            current: number(folder, "pids.current"),
            limit: if limit == u64::MAX { 0 } else { limit },
        });
    }
    if let Some(folder) = cgroups.controller("cpuacct") {
        const TICK: u64 = 10_000_000; // cpuacct.stat counts in USER_HZ, always 100 a second
        let stat = table(folder, "cpuacct.stat");
        let per_cpu = fs::read_to_string(folder.join("cpuacct.usage_percpu")).unwrap_or_default();
        let usage = v1::CpuUsage {
            total: number(folder, "cpuacct.usage"),
            kernel: stat("system") * TICK,
            user: stat("user") * TICK,
            per_cpu: per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        };
        let throttled = cgroups.controller("cpu").map(|folder| {
            let stat = table(folder, "cpu.stat");
            v1::Throttle {
                periods: stat("nr_periods"),
                throttled_periods: stat("nr_throttled"),
                throttled_time: stat("throttled_time"),
            }
        });
        metrics.cpu = Some(v1::CpuStat { usage: Some(usage), throttling: throttled });
    }
    if let Some(folder) = cgroups.controller("memory") {
        let stat = table(folder, "memory.stat");
        let entry = |prefix: &str| v1::MemoryEntry {
            limit: number(folder, &format!("{prefix}.limit_in_bytes")),
            usage: number(folder, &format!("{prefix}.usage_in_bytes")),
            max: number(folder, &format!("{prefix}.max_usage_in_bytes")),
            failcnt: number(folder, &format!("{prefix}.failcnt")),
        };
        metrics.memory = Some(v1::MemoryStat {
            cache: stat("cache"),
            rss: stat("rss"),
            rss_huge: stat("rss_huge"),
            mapped_file: stat("mapped_file"),
            dirty: stat("dirty"),
            writeback: stat("writeback"),
            pg_pg_in: stat("pgpgin"),
            pg_pg_out: stat("pgpgout"),
            pg_fault: stat("pgfault"),
            pg_maj_fault: stat("pgmajfault"),
            inactive_anon: stat("inactive_anon"),
            active_anon: stat("active_anon"),
            inactive_file: stat("inactive_file"),
            active_file: stat("active_file"),
            unevictable: stat("unevictable"),
            hierarchical_memory_limit: stat("hierarchical_memory_limit"),
            hierarchical_swap_limit: stat("hierarchical_memsw_limit"),
            total_cache: stat("total_cache"),
            total_rss: stat("total_rss"),
            total_rss_huge: stat("total_rss_huge"),
            total_mapped_file: stat("total_mapped_file"),
            total_dirty: stat("total_dirty"),
            total_writeback: stat("total_writeback"),
            total_pg_pg_in: stat("total_pgpgin"),
            total_pg_pg_out: stat("total_pgpgout"),
            total_pg_fault: stat("total_pgfault"),
            total_pg_maj_fault: stat("total_pgmajfault"),
            total_inactive_anon: stat("total_inactive_anon"),
            total_active_anon: stat("total_active_anon"),
            total_inactive_file: stat("total_inactive_file"),
            total_active_file: stat("total_active_file"),
            total_unevictable: stat("total_unevictable"),
            usage: Some(entry("memory")),
            swap: Some(entry("memory.memsw")),
            kernel: Some(entry("memory.kmem")),
            kernel_tcp: Some(entry("memory.kmem.tcp")),
        });
        let oom = table(folder, "memory.oom_control");
        metrics.memory_oom_control = Some(v1::MemoryOomControl {
            oom_kill_disable: oom("oom_kill_disable"),
            under_oom: oom("under_oom"),
            oom_kill: oom("oom_kill"),
        });
    }
    metrics
}

fn unified(folder: &Path) -> v2::Metrics {
    let cpu = table(folder, "cpu.stat");
    let memory = table(folder, "memory.stat");
    let events = table(folder, "memory.events");
    let limit = number(folder, "pids.max");
    v2::Metrics {
        pids: Some(v2::PidsStat {
            current: number(folder, "pids.current"),
            limit: if limit == u64::MAX { 0 } else { limit },
        }),
        cpu: Some(v2::CpuStat {
            usage_usec: cpu("usage_usec"),
            user_usec: cpu("user_usec"),
            system_usec: cpu("system_usec"),
            nr_periods: cpu("nr_periods"),
            nr_throttled: cpu("nr_throttled"),
            throttled_usec: cpu("throttled_usec"),
            psi: None,
        }),
        memory: Some(v2::MemoryStat {
            anon: memory("anon"),
            file: memory("file"),
            kernel_stack: memory("kernel_stack"),
            slab: memory("slab"),
            sock: memory("sock"),
            shmem: memory("shmem"),
            file_mapped: memory("file_mapped"),
            file_dirty: memory("file_dirty"),
            file_writeback: memory("file_writeback"),
            inactive_anon: memory("inactive_anon"),
            active_anon: memory("active_anon"),
            inactive_file: memory("inactive_file"),
            active_file: memory("active_file"),
            unevictable: memory("unevictable"),
            slab_reclaimable: memory("slab_reclaimable"),
            slab_unreclaimable: memory("slab_unreclaimable"),
            pgfault: memory("pgfault"),
            pgmajfault: memory("pgmajfault"),
            usage: number(folder, "memory.current"),
            usage_limit: number(folder, "memory.max"),
            swap_usage: number(folder, "memory.swap.current"),
            swap_limit: number(folder, "memory.swap.max"),
            max_usage: number(folder, "memory.peak"),
            ..v2::MemoryStat::default()
        }),
        memory_events: Some(v2::MemoryEvents {
            low: events("low"),
            high: events("high"),
            max: events("max"),
            oom: events("oom"),
            oom_kill: events("oom_kill"),
        }),
        ..v2::Metrics::default()
    }
}
