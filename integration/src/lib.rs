//! What end-to-end tests, the demo and the benchmarks share: the built programs and their peers, started privately
//! on roots and sockets of their own, and used as a person or a client would.

pub mod apart;
pub mod daemon;
pub mod dockerd;
pub mod image;
pub mod inventory;
pub mod podman;
pub mod programs;
pub mod registry;
