//! What the runtime says of itself: versions, conditions, the cgroup driver.

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

    pub(super) async fn status(&self) -> pb::StatusResponse {
        let condition = |name: &str| pb::RuntimeCondition { r#type: name.into(), status: true, ..Default::default() };
        let network = match self.network.status().await {
            Ok(()) => condition("NetworkReady"),
            Err(error) => pb::RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: false,
                reason: "NetworkPluginNotReady".into(),
                message: error.to_string(),
            },
        };
        // The nameless handler is the default one.
        let names = std::iter::once("").chain(self.config.runtimes.keys().map(String::as_str));
        let handlers = names.map(|name| pb::RuntimeHandler { name: name.into(), features: None });
        pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions: vec![condition("RuntimeReady"), network] }),
            runtime_handlers: handlers.collect(),
            ..pb::StatusResponse::default()
        }
    }

    pub(super) fn runtime_config(&self) -> pb::RuntimeConfigResponse {
        let driver = if self.config.systemd_cgroup { pb::CgroupDriver::Systemd } else { pb::CgroupDriver::Cgroupfs };
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        pb::RuntimeConfigResponse { linux: Some(linux) }
    }
}
