//! Tasks: the daemon's side of the shim contract.
//!
//! ```text
//! create:  bundle → shim's `start` → connect → Create        each step undone if a later one fails
//! lost:    shim's `delete` → exit and delete events → bundle removed
//! restart: each bundle: connect → State                      or as lost
//! ```
//!
//! Shims own containers and exit codes; nothing here must live for a container to go on. One table holds the tasks that
//! are known; what is not in it, while its bundle is there, is found by [`Tasks::recover`].

mod bundle;
mod log;
mod shim;
mod start;
mod table;
#[allow(clippy::module_inception)]
mod task;
mod tasks;

pub use bundle::{Bundle, Bundles, SANDBOXES, TASKS};
pub(crate) use shim::{Shim, found, recall, with_root};
pub(crate) use start::Caller;
pub use start::{Daemon, OURS, binary, info};
pub(crate) use table::Table;
pub use task::{Exit, Task};
pub use tasks::{Checkpoint, Creation, Tasks};
