//! Mounts: what their options mean, trees that are prepared detached, and paths inside a root that may be hostile.

pub mod make;
pub mod options;
pub mod root;
pub mod tree;
