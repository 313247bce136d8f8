//! The specification of a container as `tarectl run` asks for it.
//!
//! Source: runtime-spec config.md; the defaults are docker's.

pub(crate) mod seccomp;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

pub use user::User;

use crate::error::{Error, Result};

/// What docker gives a container that asks for nothing.
pub const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All that this kernel generation knows, for privileged containers.
const ALL: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Kernel interfaces that a container has no business with.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What an image says about running it. Source: image-spec config.md.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    pub user: String,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: String,
    pub stop_signal: String,
    /// Their paths are the keys.
    pub volumes: Option<BTreeMap<String, Value>>,
}

impl ImageConfig {
    /// # Errors
    /// `InvalidArgument`.
    pub fn read(config: &[u8]) -> Result<ImageConfig> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            config: Option<ImageConfig>,
        }
        let whole: Whole = serde_json::from_slice(config)
            .map_err(|error| Error::InvalidArgument(format!("reading an image's configuration: {error}")))?;
        Ok(whole.config.unwrap_or_default())
    }
}

/// A bind mount or a tmpfs.
#[derive(Debug, Clone)]
pub struct Volume {
    pub source: String,
    pub target: String,
    pub read_only: bool,
}

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub args: Vec<String>,
    pub entrypoint: Option<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub terminal: bool,
    pub read_only: bool,
    pub privileged: bool,
    pub host_network: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub volumes: Vec<Volume>,
    pub tmpfs: Vec<String>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Thousandths of a processor.
    pub millicpus: Option<i64>,
    pub pids: Option<i64>,
    pub cgroups_path: String,
}

/// Puts image and command line together; `rootfs` is where the image's users are looked up.
///
/// # Errors
/// `InvalidArgument`, naming what is wrong.
pub fn spec(image: &ImageConfig, asked: &Asked, rootfs: &Path) -> Result<Value> {
    let user = User::resolve(asked.user.as_deref().unwrap_or(&image.user), rootfs)?;
    let mut process = json!({
        "terminal": asked.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args(image, asked)?,
        "env": environment(image, asked, &user),
        "cwd": asked.workdir.as_deref().or(Some(image.working_dir.as_str())).filter(|dir| !dir.is_empty()).unwrap_or("/"),
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
        "noNewPrivileges": false,
    });
    let capabilities = capabilities(asked)?;
    process["capabilities"] = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if !asked.host_network {
        namespaces.push("network");
    }
    let mut linux = json!({
        "namespaces": namespaces.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
        "resources": resources(asked),
        "cgroupsPath": asked.cgroups_path,
    });
    if !asked.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        linux["seccomp"] = seccomp::profile(&capabilities);
    }
    Ok(json!({
        "ociVersion": "1.2.1",
        "process": process,
        "root": {"path": "rootfs", "readonly": asked.read_only},
        "hostname": asked.hostname.clone().unwrap_or_default(),
        "mounts": mounts(asked),
        "linux": linux,
    }))
}

/// docker's rule: an entry point that is given takes the image's command away with it.
fn args(image: &ImageConfig, asked: &Asked) -> Result<Vec<String>> {
    let mut args: Vec<String> = match &asked.entrypoint {
        Some(entrypoint) => Some(entrypoint.clone()).filter(|text| !text.is_empty()).into_iter().collect(),
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    if !asked.args.is_empty() {
        args.extend(asked.args.iter().cloned());
    } else if asked.entrypoint.is_none() {
        args.extend(image.cmd.clone().unwrap_or_default());
    }
    if args.is_empty() {
        return Err(Error::InvalidArgument("the image names no command, and none was given".into()));
    }
    Ok(args)
}

/// The image's variables, then those given, which win; `NAME` alone takes the value from here.
fn environment(image: &ImageConfig, asked: &Asked, user: &User) -> Vec<String> {
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match environment.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => environment.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if let Some(hostname) = &asked.hostname {
        set("HOSTNAME", hostname);
    }
    if asked.terminal {
        set("TERM", "xterm");
    }
    set("HOME", &user.home);
    for variable in image.env.iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    for variable in &asked.env {
        match variable.split_once('=') {
            Some((name, value)) => set(name, value),
            None => {
                if let Ok(value) = std::env::var(variable) {
                    set(variable, &value);
                }
            }
        }
    }
    environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn capabilities(asked: &Asked) -> Result<Vec<String>> {
    let full = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known = name == "CAP_ALL" || ALL.contains(&name.as_str()) || CAPABILITIES.contains(&name.as_str());
        if known { Ok(name) } else { Err(Error::InvalidArgument(format!("unknown capability {name}"))) }
    };
    let all = || CAPABILITIES.iter().chain(ALL).map(|name| (*name).to_owned());
    let added = asked.cap_add.iter().map(|name| full(name)).collect::<Result<Vec<_>>>()?;
    let dropped = asked.cap_drop.iter().map(|name| full(name)).collect::<Result<Vec<_>>>()?;
    let mut set: Vec<String> = if asked.privileged || added.iter().any(|name| name == "CAP_ALL") {
        all().collect()
    } else if dropped.iter().any(|name| name == "CAP_ALL") {
        Vec::new()
    } else {
        CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()
    };
    for name in added.into_iter().filter(|name| name != "CAP_ALL") {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    set.retain(|name| !dropped.contains(name));
    set.sort();
    Ok(set)
}

fn resources(asked: &Asked) -> Value {
    const PERIOD: i64 = 100_000;
    let mut resources = json!({});
    if asked.privileged {
        resources["devices"] = json!([{"allow": true, "access": "rwm"}]);
    } else {
        let device = |major: i64, minor: Option<i64>| match minor {
            Some(minor) => json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
            None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
        };
        let mut devices = vec![json!({"allow": false, "access": "rwm"})];
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            devices.push(device(major, Some(minor)));
        }
        devices.push(device(136, None));
        resources["devices"] = json!(devices);
    }
    if let Some(limit) = asked.memory {
        resources["memory"] = json!({"limit": limit});
    }
    if let Some(millicpus) = asked.millicpus {
        resources["cpu"] = json!({"period": PERIOD, "quota": millicpus * PERIOD / 1000});
    }
    if let Some(limit) = asked.pids {
        resources["pids"] = json!({"limit": limit});
    }
    resources
}

fn mounts(asked: &Asked) -> Vec<Value> {
    let mode = if asked.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", mode]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", mode]}),
    ];
    for target in &asked.tmpfs {
        let (target, options) = target.split_once(':').unwrap_or((target, ""));
        let mut all = vec!["nosuid", "nodev", "noexec"];
        all.extend(options.split(',').filter(|option| !option.is_empty()));
        mounts.push(json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": all}));
    }
    for volume in &asked.volumes {
        let mode = if volume.read_only { "ro" } else { "rw" };
        mounts.push(json!({"destination": volume.target, "type": "bind", "source": volume.source, "options": ["rbind", "rprivate", mode]}));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["default".into()]),
            env: Some(vec!["A=image".into(), "PATH=/bin".into()]),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn a_command_and_an_entry_point_replace_the_images_as_in_docker() {
        let run = |entrypoint: Option<&str>, given: &[&str]| {
            let asked = Asked {
                entrypoint: entrypoint.map(str::to_owned),
                args: given.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Asked::default()
            };
            args(&image(), &asked).unwrap()
        };
        assert_eq!(run(None, &[]), ["/entry", "default"]);
        assert_eq!(run(None, &["x"]), ["/entry", "x"]);
        assert_eq!(run(Some("/other"), &[]), ["/other"]);
        assert_eq!(run(Some(""), &["sh"]), ["sh"]);
    }

    #[test]
    fn capabilities_are_docker_s_and_change_as_asked() {
        let run = |add: &[&str], drop: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            capabilities(&Asked { cap_add: words(add), cap_drop: words(drop), ..Asked::default() })
        };
        assert_eq!(run(&[], &[]).unwrap().len(), 14);
        assert_eq!(run(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!run(&[], &["CHOWN"]).unwrap().contains(&"CAP_CHOWN".to_owned()));
        assert!(run(&["ALL"], &[]).unwrap().len() > 30);
        assert!(run(&["NONSENSE"], &[]).is_err());
    }

    #[test]
    fn given_variables_win_over_the_images() {
        let asked = Asked { env: vec!["A=mine".into(), "B=2".into()], ..Asked::default() };
        let environment = environment(&image(), &asked, &User::default());
        assert!(environment.contains(&"A=mine".to_owned()) && environment.contains(&"PATH=/bin".to_owned()));
        assert_eq!(environment.iter().filter(|variable| variable.starts_with("A=")).count(), 1);
    }
}
