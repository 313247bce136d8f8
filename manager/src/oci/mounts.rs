//! What is mounted in a container.

use std::path::Path;

use serde_json::{Value, json};

use super::{Asked, Place};

/// A file or folder of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: String,
    pub target: String,
    /// `rbind`, `rro`, `rshared`, …
    pub options: Vec<String>,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    pub target: String,
    pub options: Vec<String>,
}

/// As docker's.
const SHM: i64 = 64 << 20;

pub fn mounts(asked: &Asked) -> Vec<Value> {
    let mode = if asked.privileged { "rw" } else { "ro" };
    let memory = |target: &str, source: &str, options: Value| json!({"destination": target, "type": "tmpfs", "source": source, "options": options});
    let kernel = |target: &str, kind: &str, options: Value| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let host = |path: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev"]});
    let mut mounts = vec![
        kernel("/proc", "proc", json!(["nosuid", "noexec", "nodev"])),
        memory("/dev", "tmpfs", json!(["nosuid", "strictatime", "mode=755", "size=65536k"])),
        kernel("/dev/pts", "devpts", json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])),
        kernel("/sys", "sysfs", json!(["nosuid", "noexec", "nodev", mode])),
        kernel("/sys/fs/cgroup", "cgroup", json!(["nosuid", "noexec", "nodev", mode])),
    ];
    match (&asked.ipc, &asked.shm) {
        (Place::Host, _) => {
            let there = ["/dev/shm", "/dev/mqueue"].into_iter().filter(|path| Path::new(path).exists());
            mounts.extend(there.map(host));
        }
        (_, Some(shared)) => {
            let options = json!(["rbind", "rprivate", "nosuid", "noexec", "nodev"]);
            mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": shared, "options": options}));
            mounts.push(kernel("/dev/mqueue", "mqueue", json!(["nosuid", "noexec", "nodev"])));
        }
        _ => {
            if !asked.no_shm {
                let size = format!("size={}", asked.shm_size.unwrap_or(SHM));
                mounts.push(memory("/dev/shm", "shm", json!(["nosuid", "noexec", "nodev", "mode=1777", size])));
            }
            mounts.push(kernel("/dev/mqueue", "mqueue", json!(["nosuid", "noexec", "nodev"])));
        }
    }
    for tmpfs in &asked.tmpfs {
        let fixed = ["nosuid", "nodev", "noexec"].map(str::to_owned);
        let options: Vec<String> = fixed.into_iter().chain(tmpfs.options.iter().cloned()).collect();
        mounts.push(memory(&tmpfs.target, "tmpfs", json!(options)));
    }
    for bind in &asked.binds {
        mounts
            .push(json!({"destination": bind.target, "type": "bind", "source": bind.source, "options": bind.options}));
    }
    // A mount on a folder that another one makes must come after it.
    let fixed = mounts.len() - asked.tmpfs.len() - asked.binds.len();
    mounts[fixed..].sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| path.matches('/').count()));
    mounts
}

/// What mounts that pass events on between host and container need of the container's root. Source: mount_namespaces(7).
pub fn propagation(asked: &Asked) -> Option<&'static str> {
    let has = |word: &str| asked.binds.iter().any(|bind| bind.options.iter().any(|option| option.ends_with(word)));
    if has("shared") {
        Some("shared")
    } else if has("slave") {
        Some("slave")
    } else {
        None
    }
}
