//! What a pod asks of its network, in the words of CNI's plugins.

use tare_proto::runtime::v1 as pb;

use crate::cni::{Bandwidth, Capabilities, Dns, PortMapping, Protocol};
use crate::error::{Error, Result};

/// # Errors
/// `InvalidArgument`, naming the field.
pub fn capabilities(config: &pb::PodSandboxConfig) -> Result<Capabilities> {
    let ports = config.port_mappings.iter().filter(|mapping| mapping.host_port > 0).map(port);
    let dns = config.dns_config.clone();
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone());
    let annotations = config.annotations.iter().map(|(key, value)| (key.clone(), value.clone().into()));
    Ok(Capabilities {
        port_mappings: ports.collect::<Result<_>>()?,
        bandwidth: Bandwidth::from_annotations(|key| config.annotations.get(key).map(String::as_str))?,
        dns: dns.map(|dns| Dns { servers: dns.servers, searches: dns.searches, options: dns.options }),
        cgroup_path: parent.filter(|parent| !parent.is_empty()),
        pod_annotations: (!config.annotations.is_empty()).then(|| annotations.collect()),
        ..Capabilities::default()
    })
}

fn port(mapping: &pb::PortMapping) -> Result<PortMapping> {
    let wrong = |field: &str, value: String| Error::InvalidArgument(format!("config.port_mappings: {field} {value}"));
    let number = |field: &str, port: i32| u16::try_from(port).map_err(|_| wrong(field, port.to_string()));
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| wrong("host_ip", format!("{text:?}")))?),
    };
    Ok(PortMapping {
        host_port: number("host_port", mapping.host_port)?,
        container_port: number("container_port", mapping.container_port)?,
        protocol: match pb::Protocol::try_from(mapping.protocol) {
            Ok(pb::Protocol::Tcp) => Protocol::Tcp,
            Ok(pb::Protocol::Udp) => Protocol::Udp,
            Ok(pb::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err(wrong("protocol", mapping.protocol.to_string())),
        },
        host_ip,
    })
}
