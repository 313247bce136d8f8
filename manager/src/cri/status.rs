//! What the runtime says of itself: versions, conditions, the cgroup driver.

use std::collections::HashMap;

use tare_proto::runtime::v1 as pb;

use super::Cri;

impl Cri {
    /// The kubelet checks `runtime_api_version`; `version` is that of the kubelet's side and has always been this.
    pub(super) fn version() -> pb::VersionResponse {
        pb::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "tare".into(),
            runtime_version: crate::VERSION.into(),
            runtime_api_version: "v1".into(),
        }
    }

    pub(super) async fn runtime_status(&self, verbose: bool) -> pb::StatusResponse {
        let ready = |name: &str| pb::RuntimeCondition { r#type: name.into(), status: true, ..Default::default() };
        let network = match self.network.status().await {
            Ok(()) => ready("NetworkReady"),
            Err(error) => pb::RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: false,
                reason: "NetworkPluginNotReady".into(),
                message: error.to_string(),
            },
        };
        // The nameless handler is the default one.
        let names = std::iter::once("").chain(self.config.runtimes.keys().map(String::as_str));
        let features = pb::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
        let handlers = names.map(|name| pb::RuntimeHandler { name: name.into(), features: Some(features) });
        pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions: vec![ready("RuntimeReady"), network] }),
            info: if verbose { self.about() } else { HashMap::new() },
            runtime_handlers: handlers.collect(),
            features: Some(pb::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        }
    }

    /// JSON under the names that `crictl info` and the like look for.
    fn about(&self) -> HashMap<String, String> {
        let config = serde_json::to_string(&*self.config).unwrap_or_default();
        let (networks, outcome) = match self.network.configuration() {
            Ok(networks) => (networks, "OK".to_owned()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        HashMap::from([
            ("config".into(), config),
            ("cniconfig".into(), serde_json::json!({ "Networks": networks }).to_string()),
            ("lastCNILoadStatus".into(), outcome),
        ])
    }

    pub(super) fn runtime_config(&self) -> pb::RuntimeConfigResponse {
        let driver = if self.config.systemd_cgroup { pb::CgroupDriver::Systemd } else { pb::CgroupDriver::Cgroupfs };
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        pb::RuntimeConfigResponse { linux: Some(linux) }
    }
}
