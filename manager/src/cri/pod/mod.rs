//! Pods: made, stopped, removed, shown.
//!
//! ```text
//! run:    row (Making) → files, shm → netns → network ∥ sandbox in its shim → row (Ready)    undone from behind
//! stop:   containers killed → sandbox shut down → network, netns, shm gone → row (NotReady)
//! remove: stop → containers removed → files → row removed
//! ```
//!
//! Stopping and removing may be repeated and begin wherever an earlier attempt, or a daemon that was killed, left off.

mod check;
mod end;
mod files;
mod resources;
mod run;
mod show;
mod sysctl;
mod userns;

pub use show::status;
