//! What a pod's configuration must not be: refused by its field before anything is made.

use tare_proto::runtime::v1 as pb;

use crate::error::{Error, Result};

/// # Errors
/// `InvalidArgument`, naming the field.
pub fn check(config: &pb::PodSandboxConfig) -> Result<()> {
    let wrong = |field: &str, why: &str| Err(Error::InvalidArgument(format!("config.{field}: {why}")));
    let Some(metadata) = &config.metadata else { return wrong("metadata", "must be set") };
    if metadata.name.is_empty() {
        return wrong("metadata.name", "must be set");
    }
    line("hostname", &config.hostname)?;
    if config.hostname.len() > 64 {
        return wrong("hostname", "is longer than the 64 bytes that Linux takes");
    }
    for (field, texts) in config.dns_config.iter().flat_map(|dns| {
        [
            ("dns_config.servers", &dns.servers),
            ("dns_config.searches", &dns.searches),
            ("dns_config.options", &dns.options),
        ]
    }) {
        for text in texts {
            line(field, text)?;
        }
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return wrong("log_directory", "is not absolute");
    }
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return wrong("linux.security_context.run_as_group", "it needs run_as_user");
    }
    let options = security.namespace_options.unwrap_or_default();
    let host_network = options.network() == pb::NamespaceMode::Node;
    if host_network && !config.hostname.is_empty() && config.hostname != own_name() {
        return wrong("hostname", "a pod in the host's network has the host's name");
    }
    for (name, value) in &linux.sysctls {
        sysctl(name, value, host_network, options.ipc() == pb::NamespaceMode::Node)?;
    }
    if let Some(users) = &options.userns_options {
        users_of(users)?;
    }
    Ok(())
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// One line of a file that is made of it (CVE-2022-4318).
fn line(field: &str, text: &str) -> Result<()> {
    match text.chars().any(char::is_control) {
        true => Err(Error::InvalidArgument(format!("config.{field}: {text:?} has control characters"))),
        false => Ok(()),
    }
}

/// Only what has a value of its own in a namespace of the pod's own, or the host would be changed (CVE-2022-0811).
fn sysctl(name: &str, value: &str, host_network: bool, host_ipc: bool) -> Result<()> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let wrong = |why: &str| Err(Error::InvalidArgument(format!("config.linux.sysctls: {name}: {why}")));
    let name = name.replace('/', ".");
    if value.chars().any(char::is_control) {
        return wrong("its value has control characters");
    }
    let of_ipc = IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.");
    match (name.starts_with("net."), of_ipc) {
        (true, _) if host_network => wrong("it cannot be set in the host's network"),
        (_, true) if host_ipc => wrong("it cannot be set in the host's IPC namespace"),
        (true, _) | (_, true) => Ok(()),
        _ => wrong("it is not of a namespace that a pod has"),
    }
}

/// Source: cri-api `api.proto`, `UserNamespace`: one mapping of each kind, the same in the pod and its containers.
fn users_of(users: &pb::UserNamespace) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::InvalidArgument(format!("config.linux.security_context.namespace_options.userns_options: {why}")))
    };
    match pb::NamespaceMode::try_from(users.mode) {
        Ok(pb::NamespaceMode::Node) if users.uids.is_empty() && users.gids.is_empty() => Ok(()),
        Ok(pb::NamespaceMode::Node) => wrong("mappings need the mode POD"),
        Ok(pb::NamespaceMode::Pod) => {
            let ([uids], [gids]) = (users.uids.as_slice(), users.gids.as_slice()) else {
                return wrong("exactly one mapping of uids and one of gids is supported");
            };
            match [uids, gids].iter().all(|ids| ids.container_id == 0 && ids.length >= 1) {
                true => Ok(()),
                false => wrong("a mapping must begin at 0 in the pod, and not be empty"),
            }
        }
        _ => wrong("the modes POD and NODE are supported"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut pb::PodSandboxConfig)) -> String {
        let metadata = pb::PodSandboxMetadata { name: "p".into(), ..Default::default() };
        let mut config = pb::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        change(&mut config);
        check(&config).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn sysctl(name: &str, value: &str) -> String {
        refusal(|config| {
            config.linux.get_or_insert_default().sysctls.insert(name.into(), value.into());
        })
    }

    #[test]
    fn a_pod_in_the_hosts_network_has_no_name_of_its_own() {
        let named = |name: String| {
            refusal(|config| {
                config.hostname = name;
                let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
                security.namespace_options.get_or_insert_default().set_network(pb::NamespaceMode::Node);
            })
        };
        assert!(named("other".into()).contains("config.hostname: a pod in the host's network has the host's name"));
        assert_eq!((named(own_name()), named(String::new())), (String::new(), String::new()));
    }

    #[test]
    fn what_would_change_the_host_or_add_a_line_to_a_file_is_refused() {
        assert_eq!(refusal(|_| ()), "");
        assert_eq!(sysctl("net.ipv4.ip_forward", "1"), "");
        assert_eq!(sysctl("kernel/shm_rmid_forced", "1"), "");
        for (refusal, why) in [
            (refusal(|c| c.metadata = None), "config.metadata: must be set"),
            (refusal(|c| c.hostname = "a\nb".into()), "config.hostname: \"a\\nb\" has control characters"),
            (refusal(|c| c.dns_config.get_or_insert_default().servers.push("1\n2".into())), "dns_config.servers"),
            (sysctl("kernel.core_pattern", "|x"), "not of a namespace that a pod has"),
            (sysctl("net.ipv4.ip_forward", "1\nx"), "control characters"),
            (sysctl("kernel.shm_rmid_forced+kernel.core_pattern", "1"), "not of a namespace"),
        ] {
            assert!(refusal.contains(why), "{refusal:?} {why}");
        }
        let host = refusal(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.sysctls.insert("net.core.somaxconn".into(), "1".into());
            let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
            options.set_network(pb::NamespaceMode::Node);
        });
        assert!(host.contains("host's network"), "{host}");
    }
}
