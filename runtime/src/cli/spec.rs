//! `tare spec`: a config.json to begin with.
//!
//! Source: runc-spec(8); runtime-spec config.md.

use std::path::Path;

use serde_json::json;

use super::flags::{Flag, Order, parse, switch, value};
use super::{Error, Global};
use crate::error::Doing as _;

const FLAGS: &[Flag] = &[value(&["bundle", "b"]), switch(&["rootless"])];

pub fn main(_: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    if parsed.is_set("rootless") {
        return Err(Error::Usage("--rootless: running without root is not supported yet".into()));
    }
    let file = Path::new(parsed.value("bundle").unwrap_or(".")).join("config.json");
    if file.exists() {
        let file = file.display();
        return Err(Error::Refused(format!("file {file} exists. Remove it first")));
    }
    let text = serde_json::to_vec_pretty(&example()).expect("only strings are keys");
    std::fs::write(&file, text).doing(|| format!("writing {}", file.display()))?;
    Ok(0)
}

/// A shell on a terminal in namespaces of its own, with few capabilities, on a read-only root.
fn example() -> serde_json::Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "tare",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi", "/proc/interrupts",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
