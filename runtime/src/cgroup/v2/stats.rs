//! What a container has used, from the files of version 2. Absent controllers have nothing to tell.

use std::path::Path;

use crate::cgroup::stats::{self, BlockIoEntry, HugePages, MemoryEntry, Pressure, Stats};
use crate::cgroup::{Error, file};

const NANOSECONDS_A_MICROSECOND: u64 = 1000;

pub fn stats(path: &Path) -> Result<Stats, Error> {
    let number = |name: &str| file::number(&path.join(name)).unwrap_or_default();
    let text = |name: &str| file::read(&path.join(name)).unwrap_or_default();
    let pressure = |name: &str| file::read(&path.join(name)).ok().map(|text| Pressure::parse(&text));
    let mut stats = Stats::default();

    for (key, value) in file::pairs(&text("cpu.stat")) {
        let nanoseconds = value * NANOSECONDS_A_MICROSECOND;
        match key {
            "usage_usec" => stats.cpu.usage.total = nanoseconds,
            "user_usec" => stats.cpu.usage.user = nanoseconds,
            "system_usec" => stats.cpu.usage.kernel = nanoseconds,
            "nr_periods" => stats.cpu.throttling.periods = value,
            "nr_throttled" => stats.cpu.throttling.throttled_periods = value,
            "throttled_usec" => stats.cpu.throttling.throttled_time = nanoseconds,
            _ => {}
        }
    }
    stats.cpu.psi = pressure("cpu.pressure");
    stats.cpuset.cpus = stats::list(&text("cpuset.cpus"));
    stats.cpuset.mems = stats::list(&text("cpuset.mems"));

    let memory = &mut stats.memory;
    memory.raw = file::pairs(&text("memory.stat")).map(|(key, value)| (key.to_owned(), value)).collect();
    memory.cache = memory.raw.get("file").copied().unwrap_or_default();
    let events = text("memory.events");
    let failcnt = file::pairs(&events).find(|(key, _)| *key == "max").map(|(_, value)| value).unwrap_or_default();
    let (usage, limit) = (number("memory.current"), number("memory.max"));
    memory.usage = MemoryEntry { limit, usage, max: number("memory.peak"), failcnt };
    // Readers know version 1, where swap means memory and swap together.
    let swap_limit = number("memory.swap.max");
    memory.swap = MemoryEntry {
        limit: limit.saturating_add(swap_limit),
        usage: usage.saturating_add(number("memory.swap.current")),
        max: 0,
        failcnt: 0,
    };
    memory.psi = pressure("memory.pressure");

    stats.pids.current = number("pids.current");
    stats.pids.limit = Some(number("pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or_default();

    for line in text("io.stat").lines() {
        io(line, &mut stats);
    }
    stats.blkio.psi = pressure("io.pressure");

    for size in file::page_sizes(path) {
        let pages = |name: &str| number(&format!("hugetlb.{size}.{name}"));
        let events = text(&format!("hugetlb.{size}.events"));
        let failcnt = file::pairs(&events).find(|(key, _)| *key == "max").map(|(_, value)| value).unwrap_or_default();
        stats.hugetlb.insert(size.clone(), HugePages { usage: pages("current"), max: 0, failcnt });
    }
    Ok(stats)
}

/// A line of `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`, in the words of version 1.
fn io(line: &str, stats: &mut Stats) {
    let mut words = line.split(' ');
    let device = words.next().and_then(|device| device.split_once(':'));
    let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else { return };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let (list, op) = match key {
            "rbytes" => (&mut stats.blkio.io_service_bytes_recursive, "Read"),
            "wbytes" => (&mut stats.blkio.io_service_bytes_recursive, "Write"),
            "rios" => (&mut stats.blkio.io_serviced_recursive, "Read"),
            "wios" => (&mut stats.blkio.io_serviced_recursive, "Write"),
            _ => continue,
        };
        if let Ok(value) = value.parse() {
            list.push(BlockIoEntry { major, minor, op: op.to_owned(), value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_io_is_told_in_the_words_of_version_1() {
        let mut stats = Stats::default();
        io("8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0", &mut stats);
        io("", &mut stats);
        let entry = |op: &str, value| BlockIoEntry { major: 8, minor: 16, op: op.into(), value };
        assert_eq!(stats.blkio.io_service_bytes_recursive, [entry("Read", 4096), entry("Write", 512)]);
        assert_eq!(stats.blkio.io_serviced_recursive, [entry("Read", 2), entry("Write", 1)]);
    }
}
