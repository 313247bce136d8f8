//! The distribution client: manifests as a whole, blobs as a stream.
//!
//! Source: opencontainers/distribution-spec.

mod auth;
mod client;
mod reference;

pub use client::{Blob, Manifest, Registry};
pub use reference::Reference;
