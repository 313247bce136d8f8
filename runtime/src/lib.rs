//! One OCI bundle to one container and back.

pub mod error;
pub mod seccomp;
pub mod spec;
