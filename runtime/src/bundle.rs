//! A bundle: a folder with `config.json`, read and checked. Whatever Tare does not do is refused here, by the name of the
//! field, before anything is made; what the specification does not define is passed over, as it demands.
//!
//! Source: runtime-spec bundle.md, config.md, config-linux.md.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Failed, words};
use crate::mount::options::Options;
use crate::spec::{self, Spec};

/// Having one proves that every property in it is supported and well formed; not that the host can grant it.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute.
    pub dir: PathBuf,
    pub spec: Spec,
    /// Absolute, without links.
    pub rootfs: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("JSON specification file config.json not found in {}", .0.display())]
    Missing(PathBuf),
    #[error("reading {}: {why}", .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{field}: {why}")]
    Refused { field: String, why: String },
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Names the field that cannot be done, and why.
pub fn refused<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused { field: field.into(), why: why.into() })
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    ///
    /// # Errors
    /// There is no config.json, it is not JSON of the right shape, or it asks for something that Tare does not do.
    pub fn open(dir: &Path) -> Result<Bundle, Error> {
        let unreadable = |path: &Path, error: std::io::Error| Error::Unreadable {
            path: path.to_owned(),
            why: Errno::from_io_error(&error).map_or_else(|| error.to_string(), words),
        };
        let dir = std::fs::canonicalize(dir).map_err(|error| unreadable(dir, error))?;
        let config = dir.join("config.json");
        let text = std::fs::read(&config).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::Missing(dir.clone()),
            _ => unreadable(&config, error),
        })?;
        let spec = read(&text).map_err(|why| Error::Unreadable { path: config, why })?;
        check(&spec)?;
        let rootfs = dir.join(spec.root.as_ref().map_or("", |root| &root.path));
        let rootfs = std::fs::canonicalize(&rootfs).map_err(|error| unreadable(&rootfs, error))?;
        Ok(Bundle { dir, spec, rootfs })
    }

    /// The process, which [`check`] has found.
    pub fn process(&self) -> &spec::Process {
        self.spec.process.as_ref().expect("a checked bundle has a process")
    }

    pub fn linux(&self) -> &spec::Linux {
        self.spec.linux.as_ref().expect("a checked bundle has a linux object")
    }

    /// The namespace of that kind, if the container gets or joins one.
    pub fn namespace(&self, kind: &str) -> Option<&spec::Namespace> {
        self.linux().namespaces.iter().find(|namespace| namespace.kind == kind)
    }
}

/// Reads config.json.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn read(text: &[u8]) -> Result<Spec, String> {
    let mut spec: Spec = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    spec.linux.get_or_insert_default(); // its absence asks for nothing, like an empty one
    Ok(spec)
}

/// Refuses what is malformed or not supported.
///
/// # Errors
/// The first such field.
pub fn check(spec: &Spec) -> Result<(), Error> {
    let Some(process) = &spec.process else {
        return refused("process", "missing: there is nothing to run");
    };
    let Some(linux) = &spec.linux else {
        return refused("linux", "missing");
    };
    if !spec.oci_version.starts_with("1.") {
        return refused("ociVersion", format!("{:?} is not a version that tare knows: 1.0 to 1.3", spec.oci_version));
    }
    for (name, platform) in
        [("windows", &spec.windows), ("solaris", &spec.solaris), ("vm", &spec.vm), ("zos", &spec.zos)]
    {
        if platform.is_some() {
            return refused(name, "only Linux containers are supported");
        }
    }
    if spec.root.as_ref().is_none_or(|root| root.path.is_empty()) {
        return refused("root.path", "missing");
    }
    check_process(process)?;
    check_namespaces(spec, linux)?;
    check_mounts(&spec.mounts)?;
    check_linux(linux)?;
    check_sysctls(linux)?;
    if let Some(hooks) = &spec.hooks {
        check_hooks(hooks)?;
    }
    Ok(())
}

/// Refuses a process, of config.json or of `exec`, that cannot be done.
///
/// # Errors
/// The first field that is malformed or not supported.
pub fn check_process(process: &spec::Process) -> Result<(), Error> {
    if process.args.is_empty() || process.args[0].is_empty() {
        return refused("process.args", "empty: there is nothing to run");
    }
    if !process.cwd.starts_with('/') {
        return refused("process.cwd", format!("{:?} is not an absolute path", process.cwd));
    }
    for (index, variable) in process.env.iter().enumerate() {
        if variable.find('=').is_none_or(|at| at == 0) {
            return refused(format!("process.env[{index}]"), format!("{variable:?} is not NAME=VALUE"));
        }
    }
    for (name, value) in [
        ("process.commandLine", &process.command_line),
        ("process.apparmorProfile", &process.apparmor_profile),
        ("process.selinuxLabel", &process.selinux_label),
        ("process.user.username", &process.user.username),
    ] {
        if !value.is_empty() {
            return refused(name, "not supported yet");
        }
    }
    for (name, asked) in [
        ("process.scheduler", process.scheduler.is_some()),
        ("process.ioPriority", process.io_priority.is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
    ] {
        if asked {
            return refused(name, "not supported yet");
        }
    }
    let mut kinds = BTreeSet::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = || format!("process.rlimits[{index}]");
        if crate::plan::rlimit(&limit.kind).is_none() {
            return refused(field() + ".type", format!("{:?} is not a limit", limit.kind));
        }
        if !kinds.insert(&limit.kind) {
            return refused(field() + ".type", format!("{} is there twice", limit.kind));
        }
        if limit.soft > limit.hard {
            return refused(field() + ".soft", format!("{} is above the hard limit {}", limit.soft, limit.hard));
        }
    }
    Ok(())
}

fn check_namespaces(spec: &Spec, linux: &spec::Linux) -> Result<(), Error> {
    let mut kinds = BTreeSet::new();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if crate::plan::namespace_flag(&namespace.kind).is_none() {
            return refused(field + ".type", format!("{:?} is not a kind of namespace", namespace.kind));
        }
        if !kinds.insert(namespace.kind.as_str()) {
            return refused(field + ".type", format!("{} is there twice", namespace.kind));
        }
        if !namespace.path.is_empty() && !namespace.path.starts_with('/') {
            return refused(field + ".path", format!("{:?} is not an absolute path", namespace.path));
        }
    }
    let user = linux.namespaces.iter().find(|namespace| namespace.kind == "user");
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    match user {
        None if mapped => return refused("linux.uidMappings", "mappings need a user namespace"),
        Some(user) if user.path.is_empty() && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) => {
            return refused("linux.uidMappings", "a new user namespace needs mappings of user and group ids");
        }
        Some(user) if !user.path.is_empty() && mapped => {
            return refused("linux.uidMappings", "a user namespace that is joined has its mappings already");
        }
        _ => {}
    }
    for (field, value) in [("hostname", &spec.hostname), ("domainname", &spec.domainname)] {
        if !value.is_empty() && !kinds.contains("uts") {
            return refused(field, "needs a UTS namespace");
        }
    }
    if !linux.time_offsets.is_empty() {
        match linux.namespaces.iter().find(|namespace| namespace.kind == "time") {
            Some(time) if time.path.is_empty() => {}
            _ => return refused("linux.timeOffsets", "needs a new time namespace"),
        }
        if let Some(clock) = linux.time_offsets.keys().find(|clock| !matches!(clock.as_str(), "monotonic" | "boottime"))
        {
            return refused(format!("linux.timeOffsets.{clock}"), "only monotonic and boottime have offsets");
        }
    }
    Ok(())
}

/// What may lie below /proc: files that lxcfs replaces, and two that the specification's users need. As runc has it.
const BELOW_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

fn check_mounts(mounts: &[spec::Mount]) -> Result<(), Error> {
    for (index, mount) in mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}]{name}");
        if mount.destination.is_empty() {
            return refused(field(".destination"), "missing");
        }
        let destination = cleaned(&mount.destination);
        if destination == "/" {
            return refused(field(".destination"), "the root itself cannot be mounted over");
        }
        if destination.starts_with("/proc/") && !BELOW_PROC.contains(&destination.as_str()) {
            return refused(field(".destination"), format!("{destination} is inside /proc"));
        }
        let options = Options::read(&mount.options)
            .or_else(|word| refused(field(".options"), format!("{word} is not supported yet")))?;
        let bind = options.bind.is_some() || mount.kind == "bind";
        if bind && mount.source.is_empty() {
            return refused(field(".source"), "missing: there is nothing to bind");
        }
        if bind && let Some((key, _)) = options.data.first() {
            return refused(field(".options"), format!("{key:?} is not an option of a bind mount"));
        }
        if !bind && mount.kind.is_empty() {
            return refused(field(".type"), "missing");
        }
        if destination == "/proc" && mount.kind != "proc" && !bind {
            return refused(field(".type"), format!("{} at /proc: only proc can be mounted there", mount.kind));
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return refused(field(".uidMappings"), "id-mapped mounts are not supported yet");
        }
    }
    Ok(())
}

/// A container's path as text: absolute, without `.`, `..` and empty parts.
pub fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn check_linux(linux: &spec::Linux) -> Result<(), Error> {
    for (name, asked) in [
        ("linux.netDevices", !linux.net_devices.is_empty()),
        ("linux.intelRdt", linux.intel_rdt.is_some()),
        ("linux.memoryPolicy", linux.memory_policy.is_some()),
        ("linux.mountLabel", !linux.mount_label.is_empty()),
    ] {
        if asked {
            return refused(name, "not supported yet");
        }
    }
    if crate::plan::propagation(&linux.rootfs_propagation).is_none() {
        return refused(
            "linux.rootfsPropagation",
            format!("{:?} is not a kind of propagation", linux.rootfs_propagation),
        );
    }
    if let Some(personality) = &linux.personality {
        if crate::plan::personality(&personality.domain).is_none() {
            return refused(
                "linux.personality.domain",
                format!("{:?} is neither LINUX nor LINUX32", personality.domain),
            );
        }
        if !personality.flags.is_empty() {
            return refused("linux.personality.flags", "the specification defines none");
        }
    }
    for (index, device) in linux.devices.iter().enumerate() {
        if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
            return refused(
                format!("linux.devices[{index}].type"),
                format!("{:?} is not one of c, u, b and p", device.kind),
            );
        }
        if !device.path.starts_with('/') {
            return refused(
                format!("linux.devices[{index}].path"),
                format!("{:?} is not an absolute path", device.path),
            );
        }
    }
    for (list, paths) in [("maskedPaths", &linux.masked_paths), ("readonlyPaths", &linux.readonly_paths)] {
        if let Some(index) = paths.iter().position(|path| !path.starts_with('/')) {
            return refused(format!("linux.{list}[{index}]"), format!("{:?} is not an absolute path", paths[index]));
        }
    }
    Ok(())
}

/// Only parameters that belong to a namespace of the container may be set; the others are the host's.
fn check_sysctls(linux: &spec::Linux) -> Result<(), Error> {
    const IPC: &[&str] =
        &["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced", "auto_msgmni"];
    let has = |kind: &str| linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    for (name, value) in &linux.sysctl {
        let field = format!("linux.sysctl.{name}");
        let path = sysctl_path(name);
        let needs = match path.split_once('/') {
            Some(("net", _)) => "network",
            Some(("user", _)) => "user",
            Some(("kernel", "domainname" | "hostname")) => "uts",
            Some(("kernel", rest)) if IPC.contains(&rest) => "ipc",
            Some(("fs", rest)) if rest.starts_with("mqueue/") => "ipc",
            _ => return refused(field, "is not in a namespace of its own: it would change the host"),
        };
        if !has(needs) {
            return refused(field, format!("needs a {needs} namespace, or it would change the host"));
        }
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return refused(field, "is not the name of a kernel parameter");
        }
        if value.contains(['\n', '\0']) {
            return refused(field, "has a value of more than one line");
        }
    }
    Ok(())
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward` as a path below /proc/sys. Where the first separator is a slash, dots
/// are part of names: sysctl(8).
pub fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn check_hooks(hooks: &spec::Hooks) -> Result<(), Error> {
    for (list, hooks) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        for (index, hook) in hooks.iter().enumerate() {
            if !hook.path.starts_with('/') {
                return refused(
                    format!("hooks.{list}[{index}].path"),
                    format!("{:?} is not an absolute path", hook.path),
                );
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return refused(format!("hooks.{list}[{index}].timeout"), "is not above zero");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"ociVersion":"1.2.0","process":{"args":["true"],"cwd":"/"},"root":{"path":"rootfs"},
        "linux":{"namespaces":[{"type":"mount"},{"type":"uts"},{"type":"network"}]}}"#;

    /// What is said of the good specification with one JSON pointer set to something else.
    fn said(pointer: &str, value: serde_json::Value) -> String {
        let mut json: serde_json::Value = serde_json::from_str(GOOD).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        match check(&read(json.to_string().as_bytes()).unwrap()) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        use serde_json::json;
        for (pointer, value, expected) in [
            ("/process/scheduler", json!({"policy": "SCHED_OTHER"}), "process.scheduler: not supported yet"),
            ("/process/apparmorProfile", json!("x"), "process.apparmorProfile: not supported yet"),
            ("/linux/intelRdt", json!({}), "linux.intelRdt: not supported yet"),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices: not supported yet"),
            ("/windows", json!({}), "windows: only Linux containers are supported"),
            ("/process/args", json!([]), "process.args: empty: there is nothing to run"),
            ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" is not an absolute path"),
            ("/process/env", json!(["A=1", "B"]), "process.env[1]: \"B\" is not NAME=VALUE"),
            (
                "/mounts",
                json!([{"destination": "/proc/self", "type": "tmpfs"}]),
                "mounts[0].destination: /proc/self is inside /proc",
            ),
            (
                "/linux/sysctl",
                json!({"kernel.core_pattern": "x"}),
                "linux.sysctl.kernel.core_pattern: is not in a namespace of its own: it would change the host",
            ),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}), "fine"),
            ("/hostname", json!("box"), "fine"),
            ("/futureProperty", json!(1), "fine"),
        ] {
            assert_eq!(said(pointer, value), expected, "{pointer}");
        }
    }

    #[test]
    fn both_ways_to_write_a_kernel_parameter_mean_the_same() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/arp"), "net/ipv4/conf/eth0.1/arp");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.arp"), "net/ipv4/conf/eth0.1/arp");
    }
}
