//! What CRI asks of the network for a pod, and what the pod gets. `crate::cni` does it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tare_proto::runtime::v1 as pb;

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
}
