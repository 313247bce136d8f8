//! Kernel parameters.

use super::{Error, refused};
use crate::spec;

/// Only parameters that belong to a namespace of the container may be set; the others are the host's.
pub fn check(linux: &spec::Linux) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_kernel_parameter_mean_the_same() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/arp"), "net/ipv4/conf/eth0.1/arp");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.arp"), "net/ipv4/conf/eth0.1/arp");
    }
}
