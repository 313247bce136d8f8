//! What is Linux's own and not a namespace.

use super::{Error, refused};
use crate::spec;

pub fn check(linux: &spec::Linux) -> Result<(), Error> {
    for (name, asked) in [("linux.intelRdt", linux.intel_rdt.is_some())] {
        if asked {
            return refused(name, "not supported yet");
        }
    }
    check_net_devices(linux)?;
    if let Some(policy) = &linux.memory_policy {
        crate::plan::scheduling::memory_policy(policy)?;
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

/// Source: runtime-spec config-linux.md, "Network Devices"; the kernel's dev_valid_name for what a name may be.
fn check_net_devices(linux: &spec::Linux) -> Result<(), Error> {
    const LONGEST: usize = 15;
    let mut taken = std::collections::BTreeSet::new();
    for (name, device) in &linux.net_devices {
        let field = format!("linux.netDevices.{name}");
        let new = if device.name.is_empty() { name } else { &device.name };
        for name in [name, new] {
            let letter = |c: char| c != '/' && c != ':' && c != '\0' && !c.is_whitespace();
            if name.is_empty() || name.len() > LONGEST || name == "." || name == ".." || !name.chars().all(letter) {
                return refused(field, format!("{name:?} is not the name of a network device"));
            }
        }
        if !taken.insert(new) {
            return refused(field, format!("{new} is the name of another device already"));
        }
    }
    if !linux.net_devices.is_empty() && !linux.namespaces.iter().any(|namespace| namespace.kind == "network") {
        return refused("linux.netDevices", "needs a network namespace");
    }
    Ok(())
}
