//! Mounts: where they may lie and what their options may be.

use std::path::Path;

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

pub fn check(mounts: &[spec::Mount], linux: &spec::Linux) -> Result<(), Error> {
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
        let options = Options::read(&mount.options);
        let bind = options.bind.is_some() || mount.kind == "bind";
        if bind && mount.source.is_empty() {
            return refused(field(".source"), "missing: there is nothing to bind");
        }
        if bind && let Some((key, _)) = options.data.first() {
            return refused(field(".options"), format!("{key:?} is not an option of a bind mount"));
        }
        if !bind && !options.remount && mount.kind.is_empty() {
            return refused(field(".type"), "missing");
        }
        if destination == "/proc" && mount.kind != "proc" && !bind {
            return refused(field(".type"), format!("{} at /proc: only proc can be mounted there", mount.kind));
        }
        if options.copy_up && mount.kind != "tmpfs" {
            return refused(field(".options"), "tmpcopyup is for a tmpfs");
        }
        check_id_map(mount, &options, linux).or_else(|why| refused(field(".uidMappings"), why))?;
    }
    Ok(())
}

/// Source: runtime-spec config.md, "Mounts", `uidMappings`; config-linux.md, `idmap` and `ridmap`.
fn check_id_map(mount: &spec::Mount, options: &Options, linux: &spec::Linux) -> Result<(), &'static str> {
    let bind = options.bind.is_some() || mount.kind == "bind";
    let own = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if !own && options.id_map.is_none() {
        return Ok(());
    }
    if !bind {
        return Err("id-mapped mounts are only supported for bind mounts");
    }
    if own && (mount.uid_mappings.is_empty() || mount.gid_mappings.is_empty()) {
        return Err("an id-mapped mount needs mappings of both user and group ids");
    }
    if !own && !linux.namespaces.iter().any(|namespace| namespace.kind == "user") {
        return Err("an id-mapped mount needs mappings of its own, or a user namespace to have them from");
    }
    Ok(())
}

/// Some callers write a destination as the host sees it, below the root file system; runc understands them.
pub fn strip_root(mount: &mut spec::Mount, rootfs: &Path) {
    if let Ok(inside) = Path::new(&cleaned(&mount.destination)).strip_prefix(rootfs)
        && rootfs != Path::new("/")
    {
        mount.destination = format!("/{}", inside.display());
    }
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
