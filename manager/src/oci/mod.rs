//! The specification of a container as `tarectl run` asks for it.
//!
//! Source: runtime-spec config.md; the defaults are docker's.

mod capability;
mod device;
mod image;
mod mounts;
mod process;
mod profile;
mod resources;
pub(crate) mod seccomp;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use capability::{DEFAULT as CAPABILITIES, all as all_capabilities};
pub use device::{Device, rule as device_rule};
pub use image::ImageConfig;
pub use mounts::{Bind, Tmpfs};
pub use process::set as set_variable;
pub use resources::Limits;
pub use user::User;

use crate::error::Result;

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

/// Which namespace of a kind a container lives in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Own,
    Host,
    /// That of this file.
    Join(PathBuf),
}

/// What filters system calls.
#[derive(Debug, Clone, Default)]
pub enum Seccomp {
    #[default]
    Builtin,
    Unconfined,
    /// docker's format.
    Profile(Value),
}

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub args: Vec<String>,
    pub entrypoint: Option<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// More groups, by name or number.
    pub groups: Vec<String>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub terminal: bool,
    pub read_only: bool,
    pub privileged: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub seccomp: Seccomp,
    pub apparmor: Option<String>,
    pub no_new_privileges: bool,
    /// Nothing of /proc and /sys is hidden.
    pub unmasked: bool,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    /// Bytes.
    pub shm_size: Option<i64>,
    pub no_shm: bool,
    /// A folder for /dev/shm that others share.
    pub shm: Option<String>,
    pub network: Place,
    pub pid: Place,
    pub ipc: Place,
    pub uts: Place,
    pub cgroup: Place,
    pub limits: Limits,
    pub devices: Vec<Device>,
    pub device_rules: Vec<Value>,
    /// `RLIMIT_…`, soft, hard.
    pub rlimits: Vec<(String, u64, u64)>,
    pub sysctls: BTreeMap<String, String>,
    pub oom_score_adj: Option<i64>,
    pub annotations: BTreeMap<String, String>,
    pub cgroups_path: String,
}

/// Puts image and command line together; `rootfs` is where the image's users are looked up.
///
/// # Errors
/// `InvalidArgument`, naming what is wrong.
pub fn spec(image: &ImageConfig, asked: &Asked, rootfs: &Path) -> Result<Value> {
    let mut user = User::resolve(asked.user.as_deref().unwrap_or(&image.user), rootfs)?;
    user.join(&asked.groups, rootfs)?;
    let capabilities = capability::set(asked.privileged, &asked.cap_add, &asked.cap_drop)?;
    let mut process = process::process(image, asked, &user)?;
    process["capabilities"] = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    let (resources, devices) = resources::resources(asked)?;
    let mut linux = json!({
        "namespaces": namespaces(asked),
        "resources": resources,
        "cgroupsPath": asked.cgroups_path,
    });
    if !devices.is_empty() {
        linux["devices"] = devices.into();
    }
    if !asked.sysctls.is_empty() {
        linux["sysctl"] = json!(asked.sysctls);
    }
    if let Some(propagation) = mounts::propagation(asked) {
        linux["rootfsPropagation"] = propagation.into();
    }
    if !asked.privileged && !asked.unmasked {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    match &asked.seccomp {
        Seccomp::Builtin if asked.privileged => {}
        Seccomp::Builtin => linux["seccomp"] = seccomp::profile(&capabilities),
        Seccomp::Unconfined => {}
        Seccomp::Profile(profile) => linux["seccomp"] = profile::compile(profile, &capabilities)?,
    }
    let mut spec = json!({
        "ociVersion": "1.2.1",
        "process": process,
        "root": {"path": "rootfs", "readonly": asked.read_only},
        "mounts": mounts::mounts(asked),
        "linux": linux,
    });
    if asked.uts == Place::Own {
        spec["hostname"] = asked.hostname.clone().unwrap_or_default().into();
    }
    if let Some(domainname) = &asked.domainname {
        spec["domainname"] = domainname.as_str().into();
    }
    if !asked.annotations.is_empty() {
        spec["annotations"] = json!(asked.annotations);
    }
    Ok(spec)
}

fn namespaces(asked: &Asked) -> Vec<Value> {
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, place) in [
        ("network", &asked.network),
        ("pid", &asked.pid),
        ("ipc", &asked.ipc),
        ("uts", &asked.uts),
        ("cgroup", &asked.cgroup),
    ] {
        match place {
            Place::Own => namespaces.push(json!({"type": kind})),
            Place::Join(path) => namespaces.push(json!({"type": kind, "path": path})),
            Place::Host => {}
        }
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(asked: &Asked) -> Value {
        let image = ImageConfig { cmd: Some(vec!["sh".into()]), ..ImageConfig::default() };
        spec(&image, asked, Path::new("/var/empty")).unwrap()
    }

    #[test]
    fn a_container_that_asks_for_nothing_is_confined() {
        let spec = made(&Asked::default());
        let kinds: Vec<&str> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().filter_map(|kind| kind["type"].as_str()).collect();
        assert_eq!(kinds, ["mount", "network", "pid", "ipc", "uts", "cgroup"]);
        assert!(spec["linux"]["seccomp"].is_object() && spec["linux"]["maskedPaths"].is_array());
        assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
        assert!(spec["linux"].get("devices").is_none() && spec["process"].get("rlimits").is_none());
    }

    #[test]
    fn a_privileged_container_sees_all_of_the_machine() {
        let spec = made(&Asked { privileged: true, ..Asked::default() });
        let linux = &spec["linux"];
        assert!(
            linux.get("seccomp").is_none()
                && linux.get("maskedPaths").is_none()
                && linux.get("readonlyPaths").is_none()
        );
        assert_eq!(linux["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
        let sys = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/sys").unwrap();
        assert!(sys["options"].as_array().unwrap().contains(&json!("rw")));
    }

    #[test]
    fn namespaces_are_joined_shared_and_left_out() {
        let asked = Asked {
            pid: Place::Join("/proc/7/ns/pid".into()),
            ipc: Place::Host,
            uts: Place::Host,
            hostname: Some("h".into()),
            ..Asked::default()
        };
        let spec = made(&asked);
        let namespaces = spec["linux"]["namespaces"].to_string();
        assert!(namespaces.contains(r#"{"path":"/proc/7/ns/pid","type":"pid"}"#), "{namespaces}");
        assert!(!namespaces.contains("ipc") && !namespaces.contains("uts") && spec.get("hostname").is_none());
        let shm = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/dev/shm").unwrap();
        assert_eq!(shm["type"], "bind");
    }
}
