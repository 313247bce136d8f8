//! One OCI bundle to one container and back.

pub mod error;
pub mod mount;
pub mod spec;
pub mod sys;
