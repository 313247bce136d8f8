//! The files of a pod that its containers see, and its /dev/shm.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::mount::MountFlags;
use tare_proto::runtime::v1 as pb;

use crate::cri::folders;
use crate::cri::rows;
use crate::cri::spec::{Files, Host};
use crate::error::{Doing as _, Result};

/// # Errors
/// A file cannot be written, or the memory file system not be mounted.
pub fn make(files: &Files, pod: &rows::Pod, host: &Host) -> Result<()> {
    for place in [&files.hostname, &files.shm] {
        if let Some(folder) = place.parent() {
            folders::make(folder, 0o711)?;
        }
    }
    write(&files.hostname, format!("{}\n", host.name_for(pod.config())).as_bytes())?;
    write(&files.hosts, &read("/etc/hosts")?)?;
    let resolv_conf = match &pod.config().dns_config {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
            resolver(dns).into_bytes()
        }
        _ => read("/etc/resolv.conf")?,
    };
    write(&files.resolv_conf, &resolv_conf)?;
    if pod.namespaces().ipc() == pb::NamespaceMode::Node {
        return Ok(());
    }
    folders::make(&files.shm, 0o1777)?;
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let size = c"mode=1777,size=65536k";
    rustix::mount::mount("shm", &files.shm, "tmpfs", flags, size)
        .doing(|| format!("mounting a tmpfs at {}", files.shm.display()))
}

/// Source: resolv.conf(5).
fn resolver(dns: &pb::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// A host without the file has nothing to say.
fn read(path: &str) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.doing(|| format!("reading {path}")),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o644).open(path).doing(doing)?;
    file.write_all(content).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_as_the_pod_says() {
        let dns = pb::DnsConfig {
            servers: vec!["10.10.10.10".into(), "10.10.10.11".into()],
            searches: vec!["a.com".into(), "b.com".into()],
            options: vec!["ndots:8".into()],
        };
        let text = "search a.com b.com\nnameserver 10.10.10.10\nnameserver 10.10.10.11\noptions ndots:8\n";
        assert_eq!(resolver(&dns), text);
    }
}
