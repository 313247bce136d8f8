//! What the kernel counts for a cgroup, in either version's words.
//!
//! Read here and not by asking shims: a kubelet asks for all containers every few seconds, and this is a few small files
//! each.
//!
//! Source: kernel cgroup-v1/{memory,cpuacct}.rst, cgroup-v2.rst.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tare_proto::runtime::v1 as pb;

const TREE: &str = "/sys/fs/cgroup";

/// A cgroup: its folder in each hierarchy that counts something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1(HashMap<String, PathBuf>),
    V2(PathBuf),
}

/// Counted until now, in bytes and nanoseconds. What is marked so is only in [`Cgroup::details`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: u64,
    /// Details.
    pub cpu_user: u64,
    /// Details.
    pub cpu_system: u64,
    /// Details.
    pub periods: u64,
    /// Details.
    pub throttled_periods: u64,
    /// Details.
    pub throttled: u64,
    pub memory: u64,
    /// Details.
    pub memory_peak: u64,
    /// Details.
    pub memory_failures: u64,
    /// Details.
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
    /// Details.
    pub processes_limit: Option<u64>,
    /// Details.
    pub oom_kills: u64,
    /// Details. By device, operation: bytes and operations.
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

    /// What a kubelet asks for every few seconds; none if it is gone.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Cgroup::V1(folders) => V1(folders).usage(),
            Cgroup::V2(folder) => V2(folder).usage(),
        }
    }

    /// All that there is; none if it is gone.
    pub fn details(&self) -> Option<Usage> {
        match self {
            Cgroup::V1(folders) => V1(folders).details(),
            Cgroup::V2(folder) => V2(folder).details(),
        }
    }
}

/// A file that the kernel makes whole for each reading, which is why one call is enough: seq_file.rst, `single_open`.
fn read(path: &Path) -> Option<String> {
    const ENOUGH: usize = 16 << 10;
    let mut file = fs::File::open(path).ok()?;
    let mut bytes = vec![0; ENOUGH];
    let length = file.read(&mut bytes).ok()?;
    bytes.truncate(length);
    if length == ENOUGH {
        file.read_to_end(&mut bytes).ok()?;
    }
    String::from_utf8(bytes).ok()
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

struct V1<'a>(&'a HashMap<String, PathBuf>);

impl V1<'_> {
    fn path(&self, controller: &str, file: &str) -> Option<PathBuf> {
        self.0.get(controller).map(|folder| folder.join(file))
    }

    fn count(&self, controller: &str, file: &str) -> Option<u64> {
        number(&self.path(controller, file)?)
    }

    fn text(&self, controller: &str, file: &str) -> String {
        self.path(controller, file).and_then(|path| read(&path)).unwrap_or_default()
    }

    fn limit(&self, controller: &str, file: &str) -> Option<u64> {
        limit(&self.path(controller, file)?)
    }

    fn usage(&self) -> Option<Usage> {
        let stat = self.text("memory", "memory.stat");
        let stat = table(&stat);
        let memory = |key: &str| stat.get(key).copied().unwrap_or_default();
        Some(Usage {
            cpu: self.count("cpuacct", "cpuacct.usage")?,
            memory: self.count("memory", "memory.usage_in_bytes").unwrap_or_default(),
            limit: self.limit("memory", "memory.limit_in_bytes"),
            swap_limit: self.limit("memory", "memory.memsw.limit_in_bytes"),
            inactive_file: memory("total_inactive_file"),
            cache: memory("total_cache"),
            rss: memory("total_rss"),
            mapped_file: memory("total_mapped_file"),
            faults: memory("total_pgfault"),
            major_faults: memory("total_pgmajfault"),
            swap: memory("total_swap"),
            processes: self.count("pids", "pids.current").unwrap_or_default(),
            ..Usage::default()
        })
    }

    fn details(&self) -> Option<Usage> {
        let split = self.text("cpuacct", "cpuacct.stat");
        let split = table(&split);
        let ticks = |key: &str| split.get(key).copied().unwrap_or_default() * TICK;
        let throttling = self.text("cpu", "cpu.stat");
        let throttling = table(&throttling);
        let throttled = |key: &str| throttling.get(key).copied().unwrap_or_default();
        let oom = self.text("memory", "memory.oom_control");
        Some(Usage {
            cpu_user: ticks("user"),
            cpu_system: ticks("system"),
            periods: throttled("nr_periods"),
            throttled_periods: throttled("nr_throttled"),
            throttled: throttled("throttled_time"),
            memory_peak: self.count("memory", "memory.max_usage_in_bytes").unwrap_or_default(),
            memory_failures: self.count("memory", "memory.failcnt").unwrap_or_default(),
            kernel_memory: self.count("memory", "memory.kmem.usage_in_bytes").unwrap_or_default(),
            oom_kills: table(&oom).get("oom_kill").copied().unwrap_or_default(),
            processes_limit: self.limit("pids", "pids.max"),
            io: v1_io(
                &self.text("blkio", "blkio.throttle.io_service_bytes_recursive"),
                &self.text("blkio", "blkio.throttle.io_serviced_recursive"),
            ),
            ..self.usage()?
        })
    }
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

struct V2<'a>(&'a Path);

impl V2<'_> {
    fn text(&self, file: &str) -> String {
        read(&self.0.join(file)).unwrap_or_default()
    }

    fn count(&self, file: &str) -> u64 {
        number(&self.0.join(file)).unwrap_or_default()
    }

    fn usage(&self) -> Option<Usage> {
        let cpu = read(&self.0.join("cpu.stat"))?;
        let stat = self.text("memory.stat");
        let stat = table(&stat);
        let memory = |key: &str| stat.get(key).copied().unwrap_or_default();
        let limits = (limit(&self.0.join("memory.max")), limit(&self.0.join("memory.swap.max")));
        Some(Usage {
            cpu: table(&cpu).get("usage_usec").copied().unwrap_or_default() * 1000,
            memory: self.count("memory.current"),
            limit: limits.0,
            swap_limit: limits.0.zip(limits.1).map(|(memory, swap)| memory + swap),
            swap: self.count("memory.swap.current"),
            inactive_file: memory("inactive_file"),
            cache: memory("file"),
            rss: memory("anon"),
            mapped_file: memory("file_mapped"),
            faults: memory("pgfault"),
            major_faults: memory("pgmajfault"),
            kernel_memory: memory("kernel"),
            processes: self.count("pids.current"),
            pressure: ["cpu.pressure", "memory.pressure", "io.pressure"].map(|file| pressure(&self.text(file))),
            ..Usage::default()
        })
    }

    fn details(&self) -> Option<Usage> {
        let cpu = self.text("cpu.stat");
        let cpu = table(&cpu);
        let count = |key: &str| cpu.get(key).copied().unwrap_or_default();
        let events = self.text("memory.events");
        let events = table(&events);
        Some(Usage {
            cpu_user: count("user_usec") * 1000,
            cpu_system: count("system_usec") * 1000,
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled: count("throttled_usec") * 1000,
            memory_peak: self.count("memory.peak"),
            memory_failures: events.get("max").copied().unwrap_or_default(),
            oom_kills: events.get("oom_kill").copied().unwrap_or_default(),
            processes_limit: limit(&self.0.join("pids.max")),
            io: v2_io(&self.text("io.stat")),
            ..self.usage()?
        })
    }
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
        let usage = Cgroup::V2(dir.path().to_owned()).details().unwrap();
        assert_eq!((usage.cpu_user, usage.cpu_system), (3000, 2000));
        assert_eq!((usage.cpu, usage.working_set(), usage.limit, usage.rss), (5000, 60, None, 7));
        assert_eq!(usage.io[1], ("8:0".into(), "Write".into(), 2, 4));
        let some = usage.pressure[0].unwrap().some.unwrap();
        assert_eq!((some.avg10, some.total), (1.5, 12));
        let gone = Cgroup::V2(dir.path().join("gone"));
        assert_eq!((gone.usage(), gone.details()), (None, None));
    }

    #[test]
    fn our_own_cgroup_counts() {
        let own = Cgroup::of(std::process::id()).unwrap();
        let (usage, details) = (own.usage().unwrap(), own.details().unwrap());
        assert!(usage.cpu > 0 && details.cpu >= usage.cpu);
    }
}
