//! One OCI bundle to one container and back.

pub mod bundle;
pub mod capability;
pub mod cgroup;
pub mod child;
pub mod cli;
pub mod container;
pub mod criu;
pub mod dbus;
pub mod error;
pub mod handover;
pub mod hooks;
pub mod join;
pub mod memory;
pub mod mount;
mod net_devices;
mod netlink;
mod notify;
pub mod plan;
pub mod rootless;
pub mod seccomp;
pub mod sentence;
pub mod spec;
pub mod state;
pub mod sys;
pub mod systemd;
mod thread;
#[cfg(test)]
mod trap;
