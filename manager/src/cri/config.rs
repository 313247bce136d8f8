//! What CRI is told by the configuration.
//!
//! ```toml
//! [cri]
//! default_runtime = "tare"        # the handler of pods that name none; "runc" is the same one under the field's name
//! systemd_cgroup = false          # the cgroup driver that the kubelet is told to use as well
//! cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]   # devices by name; a later folder wins
//! drain_exec_sync_io_seconds = 10 # how long what a program has started may keep its output open after its end
//! pinned_images = []              # names of images that the kubelet's collector is to spare
//! [cri.runtimes.tare]
//! type = "io.containerd.tare.v2"  # the shim
//! binary = "/usr/bin/crun"        # the runtime, instead of tare
//! [cri.cni]                       # see cni/settings.rs
//! [cri.registry]
//! config_path = ""                # a folder with a hosts.toml for each registry that has mirrors
//! [cri.streaming]                 # see streaming/server.rs
//! address = "127.0.0.1"
//! port = 0
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use prost_types::Any;
use serde::{Deserialize, Serialize};
use tare_proto::any;
use tare_proto::containerd::runc::v1::Options;

use super::streaming;
use crate::error::{Error, Result};
use crate::{cdi, cni};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub default_runtime: String,
    pub systemd_cgroup: bool,
    pub cdi_spec_dirs: Vec<PathBuf>,
    pub pinned_images: Vec<String>,
    pub drain_exec_sync_io_seconds: u64,
    pub runtimes: BTreeMap<String, Runtime>,
    pub cni: cni::Settings,
    pub registry: Registry,
    pub streaming: streaming::Settings,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    pub config_path: PathBuf,
}

/// A runtime handler, as pods name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub r#type: String,
    #[serde(default)]
    pub binary: String,
}

impl Default for Config {
    fn default() -> Config {
        let tare = Runtime { r#type: "io.containerd.tare.v2".into(), binary: String::new() };
        Config {
            default_runtime: "tare".into(),
            systemd_cgroup: false,
            pinned_images: Vec::new(),
            drain_exec_sync_io_seconds: 10,
            cdi_spec_dirs: cdi::FOLDERS.map(PathBuf::from).to_vec(),
            runtimes: [("runc".to_owned(), tare.clone()), ("tare".to_owned(), tare)].into(),
            cni: cni::Settings::default(),
            registry: Registry::default(),
            streaming: streaming::Settings::default(),
        }
    }
}

impl Config {
    /// The runtime of a handler; the default one if it has no name.
    ///
    /// # Errors
    /// `NotFound`: none of that name is configured.
    pub fn runtime(&self, handler: &str) -> Result<&Runtime> {
        let name = if handler.is_empty() { &self.default_runtime } else { handler };
        self.runtimes.get(name).ok_or_else(|| Error::NotFound(format!("no runtime for {name:?} is configured")))
    }
}

impl Runtime {
    /// As the shim reads them. `owner` is who may open the streams of a container again, by `/dev/stdout`: root as the
    /// container has it.
    pub fn options(&self, systemd_cgroup: bool, owner: (u32, u32)) -> Any {
        let (io_uid, io_gid) = owner;
        let options =
            Options { binary_name: self.binary.clone(), systemd_cgroup, io_uid, io_gid, ..Options::default() };
        any::pack("containerd.runc.v1.Options", &options)
    }
}

/// Options as clients are shown them, in containerd's words.
pub fn shown(options: Option<&Any>) -> serde_json::Value {
    let options =
        options.and_then(|options| any::unpack::<Options>(options, "containerd.runc.v1.Options").ok().flatten());
    let options = options.unwrap_or_default();
    serde_json::json!({ "binary_name": options.binary_name, "systemd_cgroup": options.systemd_cgroup })
}
