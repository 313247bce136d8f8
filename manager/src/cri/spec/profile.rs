//! Profiles as CRI names them, seccomp's among them; and what this host has of what confines containers.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::security_profile::ProfileType;

use crate::error::{Doing as _, Error, Result};
use crate::oci;

/// What this host can do, looked at once.
#[derive(Clone, Debug)]
pub struct Host {
    /// Cgroup v2 alone.
    pub unified: bool,
    pub counts_swap: bool,
    pub counts_hugepages: bool,
    /// Whether layers of overlayfs can be shown with other owners: since Linux 5.19.
    pub maps_ids: bool,
    pub apparmor: bool,
    pub selinux: bool,
    /// Without CAP_SYS_RESOURCE nobody whom we start may have a lower one. Source: proc_pid_oom_score_adj(5).
    pub lowest_oom_score: i64,
    pub hostname: String,
}

impl Host {
    pub fn look() -> Host {
        let there = |path: &str| Path::new(path).exists();
        let yes = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with(['Y', '1']));
        let unified = there("/sys/fs/cgroup/cgroup.controllers");
        let hugepages = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        Host {
            unified,
            counts_swap: there("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
                || unified && there("/proc/self/ns/cgroup") && swap_of_own_cgroup(),
            counts_hugepages: hugepages.lines().any(|line| line.starts_with("hugetlb\t")),
            maps_ids: kernel() >= (5, 19),
            apparmor: yes("/sys/module/apparmor/parameters/enabled"),
            selinux: there("/sys/fs/selinux/enforce"),
            lowest_oom_score: lowest_oom_score(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// The pod's name, or this host's if it has none of its own.
    pub fn name_for(&self, pod: &pb::PodSandboxConfig) -> String {
        if pod.hostname.is_empty() { self.hostname.clone() } else { pod.hostname.clone() }
    }
}

/// Major and minor number of this kernel's release; zeros if it does not begin with two.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The root of the tree has no limits; ours tells whether there are any.
fn swap_of_own_cgroup() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let tree = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(tree).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    tree.join(own).join("memory.swap.max").exists() || below.into_iter().any(|dir| dir.join("memory.swap.max").exists())
}

fn lowest_oom_score() -> i64 {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    if effective >> CAP_SYS_RESOURCE & 1 == 1 {
        return -1000;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

/// A profile in the new field, or in the old one that is a string.
pub(super) fn profile(field: &str, new: Option<&pb::SecurityProfile>, old: &str) -> Result<(ProfileType, String)> {
    if let Some(profile) = new {
        let name = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
        let kind = profile.profile_type();
        return match (kind, name) {
            (ProfileType::Localhost, "") => {
                Err(Error::InvalidArgument(format!("security_context.{field}: LOCALHOST needs localhost_ref")))
            }
            (ProfileType::Localhost, name) => Ok((kind, name.to_owned())),
            (kind, "") => Ok((kind, String::new())),
            _ => Err(Error::InvalidArgument(format!("security_context.{field}: localhost_ref is for LOCALHOST"))),
        };
    }
    match old {
        "" | "unconfined" => Ok((ProfileType::Unconfined, String::new())),
        "runtime/default" | "docker/default" => Ok((ProfileType::RuntimeDefault, String::new())),
        _ => match old.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() => Ok((ProfileType::Localhost, name.to_owned())),
            _ => Err(Error::InvalidArgument(format!("security_context.{field}: invalid profile {old:?}"))),
        },
    }
}

/// The filter, if there is to be one.
///
/// # Errors
/// The profile is none, or its file cannot be read.
pub fn seccomp(security: &pb::LinuxContainerSecurityContext, capabilities: &[String]) -> Result<Option<Value>> {
    match profile("seccomp", security.seccomp.as_ref(), &security.seccomp_profile_path)? {
        (ProfileType::Unconfined, _) => Ok(None),
        (ProfileType::RuntimeDefault, _) => Ok(Some(oci::seccomp::profile(capabilities))),
        (ProfileType::Localhost, path) => {
            let text = fs::read(&path).doing(|| format!("reading the seccomp profile {path}"))?;
            let profile = serde_json::from_slice(&text);
            profile.map(Some).map_err(|error| Error::InvalidArgument(format!("seccomp profile {path}: {error}")))
        }
    }
}
