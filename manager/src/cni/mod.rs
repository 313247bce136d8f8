//! Pods' networks by CNI: configuration from a folder, plugins run as the protocol wants them, results kept on disk so
//! that what was added can be taken away by whoever comes after us.
//!
//! ```text
//!  conf_dir/*.conflist ─ list::load ─▶ List ┐
//!                                           ├─▶ Network::{add, remove, check, status, collect} ─▶ plugin::run
//!  Attachment (pod, netns, capabilities) ───┘                   └─ cache: one file for each pod and interface
//! ```
//!
//! The configuration is read anew at each use: a changed file counts from the next pod on, and there is no watcher that
//! could miss it. A pod is removed by the configuration it was added by.
//!
//! Source: containernetworking/cni SPEC.md 1.1.0, CONVENTIONS.md.

mod attachment;
mod cache;
mod capability;
mod firewall;
mod list;
pub mod netns;
mod network;
mod orphan;
mod plugin;
mod result;
mod settings;
#[cfg(test)]
mod tests;

pub use attachment::Attachment;
pub use capability::{Bandwidth, Capabilities, Dns, PortMapping, Protocol};
pub use network::Network;
pub use result::{Address, PodNetwork};
pub use settings::Settings;
