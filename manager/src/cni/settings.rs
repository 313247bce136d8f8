//! Where configuration and plugins are looked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[cri.cni]` table of the daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Files with networks; the first ones by name count.
    pub conf_dir: PathBuf,
    /// Folders with plugins, searched in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// So many networks does a pod get, as `eth0`, `eth1`, …; 0 for all there are.
    pub max_conf_num: usize,
    /// Whether a bridge of our own is used while `conf_dir` holds no network.
    pub built_in: bool,
    /// Whether the networks in `conf_dir` were made by us, and may be fitted to what this machine has.
    #[serde(skip)]
    pub ours: bool,
    /// Addresses of the built-in network: `ADDRESS/PREFIX`, one for each family.
    pub built_in_subnets: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_num: 1,
            built_in: true,
            ours: false,
            built_in_subnets: vec!["10.88.0.0/16".into()],
        }
    }
}
