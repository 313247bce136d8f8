//! What `tare` tells of a running container beside what runc tells of the same: statistics, processes, lists; and what
//! updates do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tare_integration::programs;
use tempfile::TempDir;

/// A runtime with a container `box` that runs; all gone when dropped.
struct Running {
    program: PathBuf,
    dir: TempDir,
    cgroup: String,
}

impl Running {
    fn start(program: PathBuf, name: &str, args: &Value, resources: &Value) -> Running {
        let dir = tempfile::Builder::new().prefix("tare-events.").tempdir().unwrap();
        let rootfs = dir.path().join("bundle/rootfs");
        for folder in ["bin", "dev", "proc"] {
            fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
        for applet in ["head", "mkfifo", "sh", "sleep", "tail"] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let cgroup = format!("tare-events-{}-{name}", std::process::id());
        let config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "pid"}],
                "cgroupsPath": format!("/{cgroup}"), "resources": resources,
            },
        });
        fs::write(dir.path().join("bundle/config.json"), config.to_string()).unwrap();
        let running = Running { program, dir, cgroup };
        let err = running.dir.path().join("err");
        let status = running
            .command(&["run", "--detach", "--bundle", &running.dir.path().join("bundle").display().to_string(), "box"])
            .stdout(Stdio::null())
            .stderr(File::create(&err).unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "{}", fs::read_to_string(err).unwrap());
        running
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.path().join("state")).args(words).stdin(Stdio::null());
        command
    }

    fn ok(&self, words: &[&str]) -> String {
        let out = self.command(words).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// What the files of its cgroups say, whatever version they are of.
    fn limits(&self) -> Vec<(&'static str, String)> {
        let files = [
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.memsw.limit_in_bytes"),
            ("memory", "memory.soft_limit_in_bytes"),
            ("cpu", "cpu.cfs_quota_us"),
            ("cpu", "cpu.cfs_period_us"),
            ("cpu", "cpu.shares"),
            ("pids", "pids.max"),
            ("cpuset", "cpuset.cpus"),
            ("cpuset", "cpuset.mems"),
            ("", "memory.max"),
            ("", "memory.swap.max"),
            ("", "memory.low"),
            ("", "cpu.max"),
            ("", "cpu.weight"),
        ];
        let value = |(controller, file)| -> Option<(&'static str, String)> {
            let path = std::path::Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup).join(file);
            Some((file, fs::read_to_string(path).ok()?))
        };
        let limits: Vec<_> = files.into_iter().filter_map(value).collect();
        assert!(limits.len() >= 6, "{limits:?}");
        limits
    }

    fn pid(&self) -> u64 {
        serde_json::from_str::<Value>(&self.ok(&["state", "box"])).unwrap()["pid"].as_u64().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", "box"]).output();
        tare_integration::apart::remove_cgroup(&self.cgroup);
    }
}

fn both(args: &Value, resources: &Value) -> [Running; 2] {
    let tare = Running::start(programs::tare("tare").unwrap(), "tare", args, resources);
    let runc = Running::start(programs::peer("newer", "runc").unwrap(), "runc", args, resources);
    [tare, runc]
}

/// All places in `value` that hold something, without the numbers of lists.
fn places(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| places(value, &format!("{at}.{key}"), found)),
        Value::Array(elements) => elements.iter().for_each(|value| places(value, &format!("{at}[]"), found)),
        _ => drop(found.insert(at.to_owned())),
    }
}

#[test]
fn statistics_have_runcs_form() {
    let resources =
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 40}, "cpu": {"quota": 50_000, "cpus": "0"}});
    let all = both(&json!(["/bin/sleep", "1000"]), &resources).map(|running| {
        let stats: Value = serde_json::from_str(&running.ok(&["events", "--stats", "box"])).unwrap();
        assert_eq!((&stats["type"], &stats["id"]), (&"stats".into(), &"box".into()));
        assert_eq!(stats["data"]["pids"], json!({"current": 1, "limit": 40}));
        assert_eq!(stats["data"]["memory"]["usage"]["limit"], 64 << 20);
        assert_eq!(stats["data"]["cpuset"]["cpus"], json!([0]));
        let mut found = BTreeSet::new();
        places(&stats, "", &mut found);
        // Left out when they are zero, so that they depend on the moment.
        found.retain(|place| {
            !place.ends_with(".cache") && !place.contains(".throttling.") && !place.contains(".blkio.")
        });
        found
    });
    assert_eq!(all[0], all[1]);
}

#[test]
fn statistics_come_at_intervals_and_end_with_the_container() {
    let running =
        Running::start(programs::tare("tare").unwrap(), "interval", &json!(["/bin/sleep", "1000"]), &json!({}));
    let mut events = running.command(&["events", "--interval", "10ms", "box"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], "stats");
    }
    running.ok(&["kill", "box", "KILL"]);
    assert!(events.wait().unwrap().success());
    for (words, why) in
        [(["--interval", "0s"], "must be greater than 0"), (["--interval", "x"], "must be greater than 0")]
    {
        let out = running.command(&["events", words[0], words[1], "box"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && (said.contains(why) || said.contains("is not running")), "{said}");
    }
}

#[test]
fn want_of_memory_is_told_when_the_kernel_has_killed_for_it() {
    // It waits for the word, then asks for more than there is.
    let greedy = "mkfifo /go; read word < /go; head -c 90000000 /dev/zero | tail -c 80000000 > /dev/null; sleep 1000";
    let resources = json!({"memory": {"limit": 24 << 20, "swap": 24 << 20}});
    let running = Running::start(programs::tare("tare").unwrap(), "oom", &json!(["/bin/sh", "-c", greedy]), &resources);
    let mut events = running.command(&["events", "--interval", "20ms", "box"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"stats\"")); // it watches from here on
    fs::write(running.dir.path().join("bundle/rootfs/go"), "go\n").unwrap();
    let oom =
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).find(|event| event["type"] == "oom");
    assert_eq!(oom.unwrap(), json!({"type": "oom", "id": "box"}));
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn processes_and_containers_are_listed_as_runc_lists_them() {
    let all = both(&json!(["/bin/sh", "-c", "sleep 1000 & wait"]), &json!({})).map(|running| {
        let pid = running.pid();
        let mut pids: Vec<u64> = Vec::new();
        while pids.len() < 2 {
            pids = serde_json::from_str(&running.ok(&["ps", "--format", "json", "box"])).unwrap();
        }
        assert!(pids.contains(&pid));
        let table = running.ok(&["ps", "box"]);
        assert_eq!(table.lines().filter(|line| line.contains("sleep 1000")).count(), 2, "{table}");
        let own = running.ok(&["ps", "box", "-o", "pid,comm"]);
        assert_eq!(own.lines().count(), 3, "{own}");
        assert_eq!(running.ok(&["list", "--quiet"]), "box\n");
        let listed: Value = serde_json::from_str(&running.ok(&["list", "--format", "json"])).unwrap();
        assert_eq!((&listed[0]["pid"], &listed[0]["status"]), (&json!(pid), &json!("running")));
        let unknown = running.command(&["list", "--format", "yaml"]).output().unwrap();
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("invalid format option"));
        let header = |text: &str| text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let mut places_of_list = BTreeSet::new();
        places(&listed, "", &mut places_of_list);
        (header(&table), header(&own), header(&running.ok(&["list"])), places_of_list)
    });
    assert_eq!(all[0], all[1]);
}

#[test]
fn updates_have_runcs_effect() {
    let resources = json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20}, "cpu": {"quota": 20_000, "period": 50_000, "shares": 100},
        "pids": {"limit": 20},
    });
    let all = both(&json!(["/bin/sleep", "1000"]), &resources).map(|running| {
        let json = running.dir.path().join("resources.json");
        fs::write(&json, json!({"memory": {"reservation": 9 << 20}, "cpu": {"shares": 300, "cpus": "0"}}).to_string())
            .unwrap();
        let json = json.display().to_string();
        let updates: [&[&str]; 10] = [
            &["--memory", "32M"],
            &["--memory", "128M", "--memory-swap", "200M"],
            &["--memory-swap", "256M"],
            &["--memory-reservation", "16M"],
            &["--cpu-quota", "30000"],
            &["--cpu-period", "60000"],
            &["--cpu-share", "200"],
            &["--pids-limit", "30"],
            &["--cpuset-cpus", "0", "--cpuset-mems", "0"],
            &["--resources", &json],
        ];
        updates.map(|update| {
            running.ok(&[&["update"], update, &["box"]].concat());
            (update[0].to_owned(), running.limits())
        })
    });
    for ((update, ours), (_, mut theirs)) in all[0].iter().zip(all[1].clone()) {
        theirs.retain(|(file, _)| ours.iter().any(|(ours, _)| ours == file)); // no cgroup on version 1 without a limit
        assert_eq!(ours, &theirs, "{update}");
    }
}
