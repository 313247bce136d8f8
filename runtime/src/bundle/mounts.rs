//! Mounts: where they may lie and what their options may be.

use super::{Error, refused};
use crate::mount::options::Options;
use crate::spec;

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

pub fn check(mounts: &[spec::Mount]) -> Result<(), Error> {
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
