//! What CRI is told by the configuration.
//!
//! ```toml
//! [cri]
//! default_runtime = "tare"        # the handler of pods that name none
//! systemd_cgroup = false          # the cgroup driver that the kubelet is told to use as well
//! [cri.runtimes.tare]
//! type = "io.containerd.tare.v2"  # the shim
//! [cri.cni]                       # see cni/settings.rs
//! conf_dir = "/etc/cni/net.d"
//! bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cni;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub default_runtime: String,
    pub systemd_cgroup: bool,
    pub runtimes: BTreeMap<String, Runtime>,
    pub cni: cni::Settings,
}

/// A runtime handler, as pods name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub r#type: String,
}

impl Default for Config {
    fn default() -> Config {
        let tare = Runtime { r#type: "io.containerd.tare.v2".into() };
        Config {
            default_runtime: "tare".into(),
            systemd_cgroup: false,
            runtimes: [("tare".to_owned(), tare)].into(),
            cni: cni::Settings::default(),
        }
    }
}
