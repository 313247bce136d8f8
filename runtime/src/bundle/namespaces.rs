//! Namespaces, and what needs one of them.

use std::collections::BTreeSet;

use super::{Error, refused};
use crate::spec::{self, Spec};

pub fn check(spec: &Spec, linux: &spec::Linux) -> Result<(), Error> {
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
