//! What CRI asks of the network for a pod, and what the pod gets. `crate::cni` does it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tare_proto::runtime::v1 as pb;

use crate::cni;
use crate::error::{Error, Result};

/// A pod to be attached to the network, or detached from it.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The sandbox's id: `CNI_CONTAINERID`.
    pub id: String,
    /// None if it is gone: plugins then clean what they keep elsewhere.
    pub netns: Option<PathBuf>,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub ports: Vec<pb::PortMapping>,
    pub dns: Option<pb::DnsConfig>,
    pub annotations: HashMap<String, String>,
    pub cgroup_parent: String,
}

/// What a pod got: its addresses, the preferred one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    pub ips: Vec<IpAddr>,
}

impl Attachment {
    pub fn of(id: &str, netns: Option<&Path>, config: &pb::PodSandboxConfig) -> Attachment {
        let metadata = config.metadata.clone().unwrap_or_default();
        Attachment {
            id: id.to_owned(),
            netns: netns.map(Path::to_owned),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            ports: config.port_mappings.clone(),
            dns: config.dns_config.clone(),
            annotations: config.annotations.clone(),
            cgroup_parent: config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
        }
    }

    /// As plugins are asked for it.
    ///
    /// # Errors
    /// `InvalidArgument`: a port mapping or an annotation that means nothing.
    pub fn to_cni(&self) -> Result<cni::Attachment> {
        let pod = cni::Attachment::new(&self.id, self.netns.clone())?;
        let mut pod = pod.of_pod(&self.namespace, &self.name, &self.uid)?;
        let text = |value: &String| Value::from(value.as_str());
        let annotations = self.annotations.iter().map(|(key, value)| (key.clone(), text(value)));
        pod.capabilities = cni::Capabilities {
            port_mappings: self.ports.iter().filter_map(|port| mapping(port).transpose()).collect::<Result<_>>()?,
            bandwidth: cni::Bandwidth::from_annotations(|key| self.annotations.get(key).map(String::as_str))?,
            dns: self.dns.clone().map(|dns| cni::Dns {
                servers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            }),
            cgroup_path: Some(self.cgroup_parent.clone()).filter(|path| !path.is_empty()),
            pod_annotations: Some(annotations.collect()).filter(|all: &serde_json::Map<String, Value>| !all.is_empty()),
            ..cni::Capabilities::default()
        };
        Ok(pod)
    }
}

/// A port of the host, if one is asked for.
fn mapping(port: &pb::PortMapping) -> Result<Option<cni::PortMapping>> {
    if port.host_port <= 0 {
        return Ok(None);
    }
    let wrong = |what: &str| Error::InvalidArgument(format!("port_mappings: {what} in {port:?}"));
    let number = |number: i32| u16::try_from(number).ok().filter(|port| *port > 0);
    let protocol = match port.protocol() {
        pb::Protocol::Tcp => cni::Protocol::Tcp,
        pb::Protocol::Udp => cni::Protocol::Udp,
        pb::Protocol::Sctp => cni::Protocol::Sctp,
    };
    let host_ip = Some(port.host_ip.as_str()).filter(|ip| !ip.is_empty()).map(str::parse).transpose();
    Ok(Some(cni::PortMapping {
        host_port: number(port.host_port).ok_or_else(|| wrong("no port"))?,
        container_port: number(port.container_port).ok_or_else(|| wrong("no port"))?,
        protocol,
        host_ip: host_ip.map_err(|_| wrong("no address"))?,
    }))
}
