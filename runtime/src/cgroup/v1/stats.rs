//! What a container has used, from the files of version 1. A controller that the container has no cgroup for has nothing
//! to tell: its numbers are left at zero, and out of what is printed.

use std::path::Path;

use super::with;
use crate::cgroup::stats::{self, BlockIoEntry, HugePages, MemoryEntry, Stats};
use crate::cgroup::{Error, Hierarchy, file};

/// The kernel counts in ticks of 10 ms here: `USER_HZ`.
const NANOSECONDS_A_TICK: u64 = 10_000_000;

pub fn stats(hierarchies: &[Hierarchy]) -> Result<Stats, Error> {
    let mut stats = Stats::default();
    let path = |controller: &str| with(hierarchies, controller).map(|hierarchy| hierarchy.path.as_path());
    if let Some(path) = path("cpuacct") {
        let usage = &mut stats.cpu.usage;
        usage.total = file::number(&path.join("cpuacct.usage")).unwrap_or_default();
        let percpu = file::read(&path.join("cpuacct.usage_percpu")).unwrap_or_default();
        usage.percpu = percpu.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        // A header, then `0 12345 678` for each processor: its number, nanoseconds of users and of the kernel.
        let all = file::read(&path.join("cpuacct.usage_all")).unwrap_or_default();
        let numbers = |line: &str| -> Option<(u64, u64)> {
            let mut words = line.split(' ').skip(1).map_while(|word| word.parse().ok());
            Some((words.next()?, words.next()?))
        };
        (usage.percpu_user, usage.percpu_kernel) = all.lines().filter_map(numbers).unzip();
        for (key, ticks) in file::pairs(&file::read(&path.join("cpuacct.stat")).unwrap_or_default()) {
            match key {
                "user" => usage.user = ticks * NANOSECONDS_A_TICK,
                "system" => usage.kernel = ticks * NANOSECONDS_A_TICK,
                _ => {}
            }
        }
    }
    if let Some(path) = path("cpu") {
        for (key, value) in file::pairs(&file::read(&path.join("cpu.stat")).unwrap_or_default()) {
            match key {
                "nr_periods" => stats.cpu.throttling.periods = value,
                "nr_throttled" => stats.cpu.throttling.throttled_periods = value,
                "throttled_time" => stats.cpu.throttling.throttled_time = value,
                _ => {}
            }
        }
    }
    if let Some(path) = path("cpuset") {
        stats.cpuset.cpus = stats::list(&file::read(&path.join("cpuset.cpus")).unwrap_or_default());
        stats.cpuset.mems = stats::list(&file::read(&path.join("cpuset.mems")).unwrap_or_default());
        let cpuset = &mut stats.cpuset;
        for (name, number) in [
            ("cpu_exclusive", &mut cpuset.cpu_exclusive),
            ("mem_hardwall", &mut cpuset.mem_hardwall),
            ("mem_exclusive", &mut cpuset.mem_exclusive),
            ("memory_migrate", &mut cpuset.memory_migrate),
            ("memory_spread_page", &mut cpuset.memory_spread_page),
            ("memory_spread_slab", &mut cpuset.memory_spread_slab),
            ("memory_pressure", &mut cpuset.memory_pressure),
            ("sched_load_balance", &mut cpuset.sched_load_balance),
        ] {
            *number = file::number(&path.join(format!("cpuset.{name}"))).unwrap_or_default();
        }
        let level = file::read(&path.join("cpuset.sched_relax_domain_level")).unwrap_or_default();
        cpuset.sched_relax_domain_level = level.parse().unwrap_or_default();
    }
    if let Some(path) = path("memory") {
        let memory = &mut stats.memory;
        for (key, value) in file::pairs(&file::read(&path.join("memory.stat")).unwrap_or_default()) {
            memory.raw.insert(key.to_owned(), value);
        }
        memory.cache = memory.raw.get("cache").copied().unwrap_or_default();
        memory.usage = entry(path, "memory");
        memory.swap = entry(path, "memory.memsw");
        memory.kernel = entry(path, "memory.kmem");
        memory.kernel_tcp = entry(path, "memory.kmem.tcp");
    }
    if let Some(path) = path("pids") {
        stats.pids.current = file::number(&path.join("pids.current")).unwrap_or_default();
        stats.pids.limit = file::number(&path.join("pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or_default();
    }
    if let Some(path) = path("blkio") {
        stats.blkio.io_service_bytes_recursive = block_io(&path.join("blkio.throttle.io_service_bytes_recursive"));
        stats.blkio.io_serviced_recursive = block_io(&path.join("blkio.throttle.io_serviced_recursive"));
    }
    if let Some(path) = path("hugetlb") {
        for size in file::page_sizes(path) {
            let number = |name: &str| file::number(&path.join(format!("hugetlb.{size}.{name}"))).unwrap_or_default();
            let (usage, max) = (number("usage_in_bytes"), number("max_usage_in_bytes"));
            stats.hugetlb.insert(size.clone(), HugePages { usage, max, failcnt: number("failcnt") });
        }
    }
    Ok(stats)
}

fn entry(path: &Path, prefix: &str) -> MemoryEntry {
    let number = |name: &str| file::number(&path.join(format!("{prefix}.{name}"))).unwrap_or_default();
    MemoryEntry {
        limit: number("limit_in_bytes"),
        usage: number("usage_in_bytes"),
        max: number("max_usage_in_bytes"),
        failcnt: number("failcnt"),
    }
}

/// Lines of `8:0 Read 4096`, and a total that is not one of them.
fn block_io(path: &Path) -> Vec<BlockIoEntry> {
    let text = file::read(path).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split([':', ' ']);
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(BlockIoEntry { major, minor, op: words.next()?.to_owned(), value: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}
