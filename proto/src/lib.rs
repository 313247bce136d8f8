//! The wire: containerd's and CRI's messages and services, and the ttrpc transport.
//!
//! Modules mirror the packages: `containerd.task.v3` is [`containerd::task::v3`], CRI is [`runtime::v1`]. Names and numbers
//! are theirs.

pub mod any;
#[cfg(feature = "grpc")]
mod json;
pub mod ttrpc;

mod generated {
    #![allow(clippy::all, clippy::pedantic)] // not written by us
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}

pub use generated::{containerd, google, grpc, io, runtime, runtimeoptions, tare, ttrpc as wire};
