//! Sandboxes: pods, each with a shim that makes it, holds it and serves the tasks in it.
//!
//! [`Records`] are what a client says a sandbox is to be, as rows. [`Sandboxes`] are those that were made, with their shims:
//!
//! ```text
//! create:   bundle → shim's `start` → CreateSandbox          each step undone if a later one fails
//! start:    StartSandbox                                     or shut down
//! shutdown: ShutdownSandbox → bundle removed
//! lost:     shim's `delete` → bundle removed
//! restart:  each bundle: connect → PingSandbox               or as lost
//! ```
//!
//! Source: containerd's `core/metadata/sandbox.go`, `plugins/sandbox/controller.go`.

mod controller;
mod records;

pub use controller::{Creation, Sandboxes, Started};
pub use records::Records;
