//! Images, snapshots and the lifecycle of containers, behind containerd's gRPC API.

pub mod content;
pub mod error;
pub mod filter;
pub mod layer;
pub mod names;
pub mod snapshot;
pub mod store;
