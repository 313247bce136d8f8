//! Kernel parameters that a pod has without asking, as containerd's pods have them: whoever runs in it may listen on any
//! port of its own network, and ping.
//!
//! Source: containerd `docs/cri/config.md`, `enable_unprivileged_ports` and `enable_unprivileged_icmp`; ip(7), icmp(7).

use tare_proto::runtime::v1 as pb;

use crate::cri::rows::Pod;

/// From which port on no right is needed.
const PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// Whose groups may open a socket for pings.
const PING: (&str, &str) = ("net.ipv4.ping_group_range", "0 2147483647");

/// Adds those that the configuration does not set itself, where the network is the pod's own.
pub fn with_defaults(pod: &Pod, mut config: pb::PodSandboxConfig) -> pb::PodSandboxConfig {
    if pod.is_on_host_network() {
        return config;
    }
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    let asked = |name: &str, sysctls: &std::collections::HashMap<String, String>| {
        sysctls.keys().any(|key| key.replace('/', ".") == name)
    };
    // The range is of the user namespace's groups, and must lie in it.
    let range = pod.mappings().is_none().then_some(PING);
    for (name, value) in [Some(PORTS), range].into_iter().flatten() {
        if !asked(name, sysctls) {
            sysctls.insert(name.into(), value.into());
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut pb::LinuxPodSandboxConfig)) -> Vec<(String, String)> {
        let mut config = pb::PodSandboxConfig::default();
        change(config.linux.get_or_insert_default());
        let pod = Pod { config: Some(config.clone()), ..Pod::default() };
        let mut all: Vec<_> = with_defaults(&pod, config).linux.unwrap_or_default().sysctls.into_iter().collect();
        all.sort();
        all
    }

    #[test]
    fn a_pods_own_network_is_open_to_its_users_unless_it_says_otherwise() {
        let both = [PORTS, PING].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(of(|_| ()), both);
        let own = of(|linux| {
            linux.sysctls.insert("net/ipv4/ip_unprivileged_port_start".into(), "80".into());
        });
        assert_eq!(own.len(), 2);
        assert!(own.contains(&("net/ipv4/ip_unprivileged_port_start".into(), "80".into())), "{own:?}");
        let host = of(|linux| {
            let security = linux.security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().set_network(pb::NamespaceMode::Node);
        });
        assert!(host.is_empty(), "{host:?}");
    }
}
