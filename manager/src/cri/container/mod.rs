//! Containers: made, started, stopped, removed, shown.
//!
//! ```text
//! create: row (Making) → snapshot → users, volumes, specification → containerd's record → row (Created)
//! start:  task created and started, in the pod's shim → row (Running)
//! exit:   told by the shim → row (Exited) → task deleted
//! stop:   signal, patience, SIGKILL; ends with the exit
//! remove: killed → all rows removed at once → folders
//! ```
//!
//! The row says what may exist; every step back may have been made before.

mod checkpoint;
mod create;
mod exit;
mod image;
mod log;
mod look;
mod mapped;
mod remove;
mod show;
mod start;
mod stop;
mod update;
mod volume;

pub use exit::{End, UNKNOWN};
pub(in crate::cri) use start::is_running;
