//! The distribution client: manifests as a whole, blobs as a stream, both ways.
//!
//! ```text
//! Registry ── a repository; asks its servers in order ─┬─ Server: a mirror
//!                                                      └─ Server: the registry itself
//! ```
//!
//! Source: opencontainers/distribution-spec.

mod auth;
mod client;
mod dial;
mod hosts;
mod reference;
mod server;

pub use auth::{Credentials, Question, Secret};
pub use client::{Manifest, Open, Options, Registry};
pub use reference::Reference;
pub use server::Blob;
