//! What the kernel counts for a cgroup, in either version's words.
//!
//! Read here and not by asking shims: a kubelet asks for all containers every few seconds, and this is four small files
//! each.
//!
//! Source: kernel cgroup-v1/{memory,cpuacct}.rst, cgroup-v2.rst.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use tare_proto::runtime::v1 as pb;

const TREE: &str = "/sys/fs/cgroup";

/// A cgroup: its folder in each hierarchy that counts something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1(HashMap<String, PathBuf>),
    V2(PathBuf),
}

/// Counted until now, in bytes and nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: u64,
    pub cpu_user: u64,
    pub cpu_system: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
    pub memory: u64,
    pub memory_peak: u64,
    pub memory_failures: u64,
    pub kernel_memory: u64,
    /// None: no limit.
    pub limit: Option<u64>,
    /// Of memory and what was swapped out together.
    pub swap_limit: Option<u64>,
    pub swap: u64,
    pub inactive_file: u64,
    pub cache: u64,
    pub rss: u64,
    pub mapped_file: u64,
    pub faults: u64,
    pub major_faults: u64,
    pub processes: u64,
    pub processes_limit: Option<u64>,
    pub oom_kills: u64,
    /// By device, operation: bytes and operations.
    pub io: Vec<(String, String, u64, u64)>,
    pub pressure: [Option<pb::PsiStats>; 3],
}

impl Usage {
    /// What could not be taken away at once.
    pub fn working_set(&self) -> u64 {
        self.memory.saturating_sub(self.inactive_file)
    }
}

impl Cgroup {
    /// That of a process.
    pub fn of(pid: u32) -> Option<Cgroup> {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Cgroup::parse(&table, Path::new(TREE).join("cgroup.controllers").exists())
    }

    fn parse(table: &str, unified: bool) -> Option<Cgroup> {
        let mut folders = HashMap::new();
        for line in table.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            if unified && controllers.is_empty() {
                return Some(Cgroup::V2(Path::new(TREE).join(path)));
            }
            for controller in controllers.split(',').filter(|name| !name.is_empty() && !name.contains('=')) {
                folders.insert(controller.to_owned(), Path::new(TREE).join(controller).join(path));
            }
        }
        (!folders.is_empty()).then_some(Cgroup::V1(folders))
    }

    /// The one above.
    pub fn parent(&self) -> Cgroup {
        let up = |path: &PathBuf| path.parent().map_or_else(|| path.clone(), Path::to_owned);
        match self {
            Cgroup::V1(folders) => Cgroup::V1(folders.iter().map(|(name, path)| (name.clone(), up(path))).collect()),
            Cgroup::V2(path) => Cgroup::V2(up(path)),
        }
    }

    /// The processes in it, by pid.
    pub fn processes(&self) -> Vec<u32> {
        let folder = match self {
            Cgroup::V1(folders) => folders.get("memory").or_else(|| folders.get("cpuacct")),
            Cgroup::V2(folder) => Some(folder),
        };
        let list = folder.and_then(|folder| read(&folder.join("cgroup.procs"))).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// None if it is gone.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Cgroup::V1(folders) => v1(folders),
            Cgroup::V2(folder) => v2(folder),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// A limit that is none is a word, or so large that there is no such memory.
fn limit(path: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 62;
    number(path).filter(|bytes| *bytes < NONE)
}

fn table(text: &str) -> HashMap<&str, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key, value.trim().parse().ok()?))).collect()
}

/// `cpuacct.stat` counts in these. Source: sysconf(3), `_SC_CLK_TCK`; 100 on Linux.
const TICK: u64 = 10_000_000;

fn v1(folders: &HashMap<String, PathBuf>) -> Option<Usage> {
    let in_folder = |controller: &str, file: &str| folders.get(controller).map(|folder| folder.join(file));
    let count = |controller: &str, file: &str| in_folder(controller, file).and_then(|path| number(&path));
    let text =
        |controller: &str, file: &str| in_folder(controller, file).and_then(|path| read(&path)).unwrap_or_default();
    let bound = |controller: &str, file: &str| in_folder(controller, file).and_then(|path| limit(&path));
    let mut usage = Usage { cpu: count("cpuacct", "cpuacct.usage")?, ..Usage::default() };
    let split = text("cpuacct", "cpuacct.stat");
    let split = table(&split);
    usage.cpu_user = split.get("user").copied().unwrap_or_default() * TICK;
    usage.cpu_system = split.get("system").copied().unwrap_or_default() * TICK;
    let throttling = text("cpu", "cpu.stat");
    let throttling = table(&throttling);
    let throttled = |key: &str| throttling.get(key).copied().unwrap_or_default();
    (usage.periods, usage.throttled_periods) = (throttled("nr_periods"), throttled("nr_throttled"));
    usage.throttled = throttled("throttled_time");
    usage.memory = count("memory", "memory.usage_in_bytes").unwrap_or_default();
    usage.memory_peak = count("memory", "memory.max_usage_in_bytes").unwrap_or_default();
    usage.memory_failures = count("memory", "memory.failcnt").unwrap_or_default();
    usage.kernel_memory = count("memory", "memory.kmem.usage_in_bytes").unwrap_or_default();
    usage.limit = bound("memory", "memory.limit_in_bytes");
    usage.swap_limit = bound("memory", "memory.memsw.limit_in_bytes");
    let stat = text("memory", "memory.stat");
    let stat = table(&stat);
    let memory = |key: &str| stat.get(key).copied().unwrap_or_default();
    usage.inactive_file = memory("total_inactive_file");
    (usage.cache, usage.rss, usage.mapped_file) =
        (memory("total_cache"), memory("total_rss"), memory("total_mapped_file"));
    (usage.faults, usage.major_faults) = (memory("total_pgfault"), memory("total_pgmajfault"));
    usage.swap = memory("total_swap");
    let oom = text("memory", "memory.oom_control");
    usage.oom_kills = table(&oom).get("oom_kill").copied().unwrap_or_default();
    usage.processes = count("pids", "pids.current").unwrap_or_default();
    usage.processes_limit = bound("pids", "pids.max");
    usage.io = v1_io(
        &text("blkio", "blkio.throttle.io_service_bytes_recursive"),
        &text("blkio", "blkio.throttle.io_serviced_recursive"),
    );
    Some(usage)
}

/// `MAJOR:MINOR OPERATION NUMBER`, once for bytes and once for operations.
fn v1_io(bytes: &str, operations: &str) -> Vec<(String, String, u64, u64)> {
    let rows = |text: &str| -> Vec<(String, String, u64)> {
        let rows = text.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?.to_owned(), fields.next()?.to_owned(), fields.next()?.parse().ok()?))
        });
        rows.filter(|(_, operation, _)| operation == "Read" || operation == "Write").collect()
    };
    let operations = rows(operations);
    let all = rows(bytes).into_iter().map(|(device, operation, bytes)| {
        let same = operations.iter().find(|(other, kind, _)| *other == device && *kind == operation);
        let count = same.map_or(0, |(_, _, count)| *count);
        (device, operation, bytes, count)
    });
    all.collect()
}

fn v2(folder: &Path) -> Option<Usage> {
    let text = |file: &str| read(&folder.join(file)).unwrap_or_default();
    let count = |file: &str| number(&folder.join(file)).unwrap_or_default();
    let cpu = read(&folder.join("cpu.stat"))?;
    let cpu = table(&cpu);
    let micros = |key: &str| cpu.get(key).copied().unwrap_or_default() * 1000;
    let stat = text("memory.stat");
    let stat = table(&stat);
    let memory = |key: &str| stat.get(key).copied().unwrap_or_default();
    let events = text("memory.events");
    let events = table(&events);
    let limits = (limit(&folder.join("memory.max")), limit(&folder.join("memory.swap.max")));
    Some(Usage {
        cpu: micros("usage_usec"),
        cpu_user: micros("user_usec"),
        cpu_system: micros("system_usec"),
        periods: cpu.get("nr_periods").copied().unwrap_or_default(),
        throttled_periods: cpu.get("nr_throttled").copied().unwrap_or_default(),
        throttled: micros("throttled_usec"),
        memory: count("memory.current"),
        memory_peak: count("memory.peak"),
        memory_failures: events.get("max").copied().unwrap_or_default(),
        kernel_memory: memory("kernel"),
        limit: limits.0,
        swap_limit: limits.0.zip(limits.1).map(|(memory, swap)| memory + swap),
        swap: count("memory.swap.current"),
        inactive_file: memory("inactive_file"),
        cache: memory("file"),
        rss: memory("anon"),
        mapped_file: memory("file_mapped"),
        faults: memory("pgfault"),
        major_faults: memory("pgmajfault"),
        processes: count("pids.current"),
        processes_limit: limit(&folder.join("pids.max")),
        oom_kills: events.get("oom_kill").copied().unwrap_or_default(),
        io: v2_io(&text("io.stat")),
        pressure: ["cpu.pressure", "memory.pressure", "io.pressure"].map(|file| pressure(&text(file))),
    })
}

/// `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=…`.
fn v2_io(text: &str) -> Vec<(String, String, u64, u64)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let Some((device, fields)) = line.split_once(' ') else { continue };
        let fields: HashMap<&str, u64> = fields
            .split(' ')
            .filter_map(|field| field.split_once('='))
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let field = |key: &str| fields.get(key).copied().unwrap_or_default();
        all.push((device.to_owned(), "Read".to_owned(), field("rbytes"), field("rios")));
        all.push((device.to_owned(), "Write".to_owned(), field("wbytes"), field("wios")));
    }
    all
}

/// Source: kernel accounting/psi.rst.
fn pressure(text: &str) -> Option<pb::PsiStats> {
    let line = |word: &str| {
        let fields: HashMap<&str, &str> = text
            .lines()
            .find_map(|line| line.strip_prefix(word))?
            .split(' ')
            .filter_map(|f| f.split_once('='))
            .collect();
        let average = |key: &str| fields.get(key).and_then(|value| value.parse().ok()).unwrap_or_default();
        Some(pb::PsiData {
            total: fields.get("total")?.parse().ok()?,
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
        })
    };
    Some(pb::PsiStats { full: line("full "), some: line("some ") }).filter(|psi| psi.some.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_in_either_versions_tree() {
        let table = "9:cpuset:/a\n8:cpu,cpuacct:/a/b\n1:name=systemd:/a\n0::/x/y\n";
        assert_eq!(Cgroup::parse(table, true), Some(Cgroup::V2("/sys/fs/cgroup/x/y".into())));
        let Some(Cgroup::V1(folders)) = Cgroup::parse(table, false) else { panic!() };
        assert_eq!(folders["cpuacct"], Path::new("/sys/fs/cgroup/cpuacct/a/b"));
        assert!(!folders.contains_key("name=systemd"));
        let Cgroup::V1(above) = Cgroup::V1(folders).parent() else { panic!() };
        assert_eq!(above["cpuacct"], Path::new("/sys/fs/cgroup/cpuacct/a"));
    }

    #[test]
    fn what_the_second_version_says_is_read_in_its_units() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 7\nfile 9\ninactive_file 40\npgfault 3\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let usage = Cgroup::V2(dir.path().to_owned()).usage().unwrap();
        assert_eq!((usage.cpu, usage.working_set(), usage.limit, usage.rss), (5000, 60, None, 7));
        assert_eq!(usage.io[1], ("8:0".into(), "Write".into(), 2, 4));
        let some = usage.pressure[0].unwrap().some.unwrap();
        assert_eq!((some.avg10, some.total), (1.5, 12));
        assert_eq!(Cgroup::V2(dir.path().join("gone")).usage(), None);
    }

    #[test]
    fn our_own_cgroup_counts() {
        let usage = Cgroup::of(std::process::id()).unwrap().usage().unwrap();
        assert!(usage.cpu > 0);
    }
}
