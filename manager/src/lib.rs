//! Images, snapshots and the lifecycle of containers, behind containerd's gRPC API.

pub mod authority;
pub mod capability;
pub mod caretaker;
pub mod cdi;
pub mod cgroup;
pub mod cni;
pub mod collector;
pub mod config;
pub mod containers;
pub mod content;
pub mod cri;
pub mod ctl;
pub mod daemon;
pub mod debug;
pub mod error;
pub mod event;
pub mod filter;
pub mod fsck;
pub mod gc;
pub mod hook;
pub mod identity;
pub mod images;
pub mod layer;
pub mod leases;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod namespaces;
pub mod networks;
pub mod oci;
pub mod proxy;
pub mod registry;
pub mod restart;
pub mod sandbox;
pub mod service;
pub mod snapshot;
pub mod store;
pub mod streaming;
pub mod systemd;
pub mod task;
pub mod transfer;

/// As containerd numbers its releases, so that clients know what to expect of the API; ours is the build.
pub const VERSION: &str = concat!("2.3.0+tare.", env!("CARGO_PKG_VERSION"));

/// The commit that was built, if the build said.
pub const REVISION: &str = match option_env!("TARE_REVISION") {
    Some(revision) => revision,
    None => "",
};
