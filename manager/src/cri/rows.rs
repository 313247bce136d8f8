//! What is remembered of pods and containers: one row each, so that a daemon that was killed knows what it began.
//!
//! A row is written before the first side effect of what it describes (`Making`) and removed after the last trace is gone,
//! so that whatever may exist has a row.

use tare_proto::runtime::v1 as pb;

/// A kind of row.
pub trait Row: prost::Message + Default + Clone + 'static {
    const KIND: &'static str;
    /// The word for errors.
    const NOUN: &'static str;
    fn id(&self) -> &str;
    /// Made of the client's metadata: there is one of each name.
    fn name(&self) -> String;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PodState {
    /// Its making was begun and has not been answered.
    Making = 0,
    Ready = 1,
    NotReady = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Pod {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<pb::PodSandboxConfig>,
    /// The runtime handler as it was asked for.
    #[prost(string, tag = "3")]
    pub handler: String,
    #[prost(enumeration = "PodState", tag = "4")]
    pub state: i32,
    /// Nanoseconds since the epoch, as all times here.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// The pinned network namespace; empty with the host's network, and when it is gone.
    #[prost(string, tag = "6")]
    pub netns: String,
    #[prost(string, repeated, tag = "7")]
    pub ips: Vec<String>,
    /// Of the process that lives in the pod's namespaces.
    #[prost(uint32, tag = "8")]
    pub pid: u32,
    #[prost(message, optional, tag = "9")]
    pub overhead: Option<pb::LinuxContainerResources>,
    #[prost(message, optional, tag = "10")]
    pub resources: Option<pb::LinuxContainerResources>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    Making = 0,
    Created = 1,
    Running = 2,
    Exited = 3,
    /// Its removal was begun.
    Removing = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub pod: String,
    #[prost(message, optional, tag = "3")]
    pub config: Option<pb::ContainerConfig>,
    #[prost(enumeration = "ContainerState", tag = "4")]
    pub state: i32,
    /// The digest of the image's configuration.
    #[prost(string, tag = "5")]
    pub image: String,
    /// A name or digest under which the image is known.
    #[prost(string, tag = "6")]
    pub image_ref: String,
    #[prost(int64, tag = "7")]
    pub created_at: i64,
    #[prost(int64, tag = "8")]
    pub started_at: i64,
    #[prost(int64, tag = "9")]
    pub finished_at: i64,
    #[prost(int32, tag = "10")]
    pub exit_code: i32,
    #[prost(string, tag = "11")]
    pub reason: String,
    #[prost(string, tag = "12")]
    pub message: String,
    /// Absolute; empty without a log.
    #[prost(string, tag = "13")]
    pub log_path: String,
    /// A number of signal(7).
    #[prost(int32, tag = "14")]
    pub stop_signal: i32,
    #[prost(message, optional, tag = "15")]
    pub user: Option<pb::LinuxContainerUser>,
    /// As they are now.
    #[prost(message, optional, tag = "16")]
    pub resources: Option<pb::LinuxContainerResources>,
    /// As [`pb::ContainerStatus`] shows them.
    #[prost(message, repeated, tag = "17")]
    pub mounts: Vec<pb::Mount>,
    /// The kernel killed one of its processes for want of memory.
    #[prost(bool, tag = "18")]
    pub oom: bool,
    /// The runtime handler of its pod.
    #[prost(string, tag = "19")]
    pub handler: String,
    #[prost(uint32, tag = "20")]
    pub pid: u32,
    /// The image's name by digest, if it has one.
    #[prost(string, tag = "21")]
    pub image_digest: String,
}

impl Row for Pod {
    const KIND: &'static str = "cri-pod";
    const NOUN: &'static str = "sandbox";

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> String {
        let metadata = self.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
    }
}

impl Row for Container {
    const KIND: &'static str = "cri-container";
    const NOUN: &'static str = "container";

    fn id(&self) -> &str {
        &self.id
    }

    /// Within its pod: the same name may be used again in another one.
    fn name(&self) -> String {
        let metadata = self.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        format!("{}_{}_{}", metadata.name, self.pod, metadata.attempt)
    }
}

impl Pod {
    pub fn config(&self) -> &pb::PodSandboxConfig {
        static NONE: std::sync::LazyLock<pb::PodSandboxConfig> = std::sync::LazyLock::new(Default::default);
        self.config.as_ref().unwrap_or(&NONE)
    }

    pub fn security(&self) -> pb::LinuxSandboxSecurityContext {
        self.config().linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }

    pub fn namespaces(&self) -> pb::NamespaceOption {
        self.security().namespace_options.unwrap_or_default()
    }

    /// The one mapping of user and of group ids, where the pod has ids of its own.
    pub fn mappings(&self) -> Option<(pb::IdMapping, pb::IdMapping)> {
        let users = self.namespaces().userns_options?;
        match (users.mode(), users.uids.first(), users.gids.first()) {
            (pb::NamespaceMode::Pod, Some(uids), Some(gids)) => Some((*uids, *gids)),
            _ => None,
        }
    }

    pub fn is_on_host_network(&self) -> bool {
        self.namespaces().network() == pb::NamespaceMode::Node
    }

    pub fn cgroup_parent(&self) -> &str {
        self.config().linux.as_ref().map_or("", |linux| &linux.cgroup_parent)
    }
}

impl Container {
    pub fn config(&self) -> &pb::ContainerConfig {
        static NONE: std::sync::LazyLock<pb::ContainerConfig> = std::sync::LazyLock::new(Default::default);
        self.config.as_ref().unwrap_or(&NONE)
    }

    /// Whether it can still be shown to clients as one of theirs.
    pub fn is_shown(&self) -> bool {
        !matches!(self.state(), ContainerState::Making)
    }
}
