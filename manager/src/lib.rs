//! Images, snapshots and the lifecycle of containers, behind containerd's gRPC API.

pub mod config;
pub mod content;
pub mod error;
pub mod event;
pub mod filter;
pub mod gc;
pub mod layer;
pub mod names;
pub mod registry;
pub mod snapshot;
pub mod store;
pub mod task;
pub mod transfer;

/// As containerd numbers its releases, so that clients know what to expect of the API; ours is the build.
pub const VERSION: &str = concat!("2.3.0+tare.", env!("CARGO_PKG_VERSION"));
