//! What the runtime says of itself: versions, conditions, the cgroup driver.

use std::collections::HashMap;

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

use super::Cri;

/// What the shim writes of a line in one record, in bytes.
const LONGEST_LINE: usize = 16 << 10;

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
                message: format!("Network plugin returns error: {error}"),
            },
        };
        // The nameless handler is the default one.
        let names = std::iter::once("").chain(self.config.runtimes.keys().map(String::as_str));
        let handlers = names.map(|name| pb::RuntimeHandler { name: name.into(), features: Some(self.features(name)) });
        pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions: vec![ready("RuntimeReady"), network] }),
            info: if verbose { self.about() } else { HashMap::new() },
            runtime_handlers: handlers.collect(),
            features: Some(pb::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        }
    }

    /// What a handler's runtime can do on this kernel.
    fn features(&self, handler: &str) -> pb::RuntimeHandlerFeatures {
        let ours = self.config.runtime(handler).is_ok_and(|runtime| runtime.r#type == "io.containerd.tare.v2");
        pb::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: ours && self.host.maps_ids }
    }

    /// JSON under the names that `crictl info` and the like look for.
    fn about(&self) -> HashMap<String, String> {
        let (networks, outcome) = match self.network.configuration() {
            Ok(networks) => (networks, "OK".to_owned()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        HashMap::from([
            ("config".into(), self.configuration().to_string()),
            ("cniconfig".into(), serde_json::json!({ "Networks": networks }).to_string()),
            ("lastCNILoadStatus".into(), outcome),
        ])
    }

    /// Our configuration, and in containerd's words what tools look for in its own.
    fn configuration(&self) -> Value {
        let mut config = serde_json::to_value(&*self.config).unwrap_or_default();
        let [root, state] = self.folders.both();
        let runtimes = self.config.runtimes.iter().map(|(name, runtime)| {
            let options = json!({"BinaryName": runtime.binary, "SystemdCgroup": self.config.systemd_cgroup});
            (name.clone(), json!({"runtimeType": runtime.r#type, "options": options, "sandboxer": "shim"}))
        });
        let runtimes: serde_json::Map<String, Value> = runtimes.collect();
        let more = json!({
            "containerd": {"defaultRuntimeName": self.config.default_runtime, "runtimes": runtimes},
            "rootDir": root,
            "stateDir": state,
            "containerdRootDir": self.parts.root,
            "maxContainerLogLineSize": LONGEST_LINE,
            "restrictOOMScoreAdj": true,
            "enableCDI": true,
            "cdiSpecDirs": self.config.cdi_spec_dirs,
            "enableUnprivilegedPorts": true,
            "enableUnprivilegedICMP": true,
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config
    }

    pub(super) fn runtime_config(&self) -> pb::RuntimeConfigResponse {
        let driver = if self.config.systemd_cgroup { pb::CgroupDriver::Systemd } else { pb::CgroupDriver::Cgroupfs };
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        pb::RuntimeConfigResponse { linux: Some(linux) }
    }
}
