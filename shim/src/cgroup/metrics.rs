//! What a container's cgroups count, in containerd's messages.
//!
//! Source: kernel cgroup-v1/, cgroup-v2.rst; containerd/cgroups cgroup1/stats and cgroup2/stats.

use std::fs;
use std::path::Path;

use prost_types::Any;
use tare_proto::any;
use tare_proto::io::containerd::cgroups::{v1, v2};

use super::{Cgroups, devices, io, table};

/// The metrics of these cgroups; none if they are gone.
pub fn of(cgroups: &Cgroups) -> Option<Any> {
    if !cgroups.memory()?.is_dir() {
        return None;
    }
    Some(match &cgroups.unified {
        Some(folder) => any::pack("io.containerd.cgroups.v2.Metrics", &unified(folder)),
        None => any::pack("io.containerd.cgroups.v1.Metrics", &hierarchies(cgroups)),
    })
}

/// A file with one number; `max` is the largest.
pub(super) fn number(folder: &Path, file: &str) -> u64 {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
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
    if let Some(folder) = cgroups.controller("blkio") {
        metrics.blkio = Some(v1::BlkIoStat {
            io_service_bytes_recursive: io::by_operation(folder, "blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive: io::by_operation(folder, "blkio.throttle.io_serviced_recursive"),
            ..v1::BlkIoStat::default() // schedulers that kernels have no more
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
    metrics.hugetlb = cgroups.controller("hugetlb").map(devices::huge_pages).unwrap_or_default();
    metrics.rdma = cgroups.controller("rdma").and_then(devices::rdma);
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
            psi: io::pressure(folder, "cpu.pressure"),
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
            swap_max_usage: number(folder, "memory.swap.peak"),
            anon_thp: memory("anon_thp"),
            workingset_refault: memory("workingset_refault_anon") + memory("workingset_refault_file"),
            workingset_activate: memory("workingset_activate_anon") + memory("workingset_activate_file"),
            workingset_nodereclaim: memory("workingset_nodereclaim"),
            pgrefill: memory("pgrefill"),
            pgscan: memory("pgscan"),
            pgsteal: memory("pgsteal"),
            pgactivate: memory("pgactivate"),
            pgdeactivate: memory("pgdeactivate"),
            pglazyfree: memory("pglazyfree"),
            pglazyfreed: memory("pglazyfreed"),
            thp_fault_alloc: memory("thp_fault_alloc"),
            thp_collapse_alloc: memory("thp_collapse_alloc"),
            psi: io::pressure(folder, "memory.pressure"),
        }),
        memory_events: Some(v2::MemoryEvents {
            low: events("low"),
            high: events("high"),
            max: events("max"),
            oom: events("oom"),
            oom_kill: events("oom_kill"),
        }),
        io: Some(v2::IoStat { usage: io::by_device(folder), psi: io::pressure(folder, "io.pressure") }),
        rdma: devices::rdma_unified(folder),
        hugetlb: devices::huge_pages_unified(folder),
    }
}
