//! One OCI bundle to one container and back.

pub mod error;
pub mod spec;
