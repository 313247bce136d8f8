//! The Sandbox service: a pod without a pause image.
//!
//! The pod is made from its `PodSandboxConfig` ([`spec`]) by the runtime, as any container is; its one process is an init
//! of a few pages that the shim carries along ([`root`]). Containers of the pod are tasks of the same shim, and join the
//! pod by `/proc/PID/ns` of that init.
//!
//! | method | what happens |
//! |---|---|
//! | `CreateSandbox` | the runtime's `create`: namespaces and cgroup are there, nothing runs |
//! | `StartSandbox` | the runtime's `start`; its answer and `SandboxStatus` tell the init's pid |
//! | `StopSandbox` | the init is killed; with its PID namespace go the processes in it |
//! | `WaitSandbox` | answers when the init has ended and the runtime has deleted it |
//! | `ShutdownSandbox` | ends the shim, and whatever is left of the pod before it |
//!
//! Its options were given to `start`, which left them in the bundle. A sandbox is no task: of it no task events are told.
//! In the bundle, `shm`, if the daemon has mounted it, becomes the init's `/dev/shm`; in `containers`, the shim keeps a
//! link to the bundle of each container of the pod, so that `delete` finds them when the shim was killed.
//!
//! Source: containerd `api/runtime/sandbox/v1/sandbox.proto`, `plugins/sandbox/controller.go`.

mod call;
mod create;
mod end;
mod members;
mod root;
mod seccomp;
mod spec;
mod status;

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use tare_proto::ttrpc::{Code, Error};

use crate::cgroup::Cgroups;
use crate::children::Child;
use crate::phase::Exit;
use crate::reactor::Latch;
use crate::runtime::Runtime;
use crate::task::Supervisor;
pub use members::of as members;

pub struct Sandbox {
    pub id: String,
    pub bundle: PathBuf,
    runtime: Runtime,
    init: Child,
    cgroups: Option<Cgroups>,
    created: SystemTime,
    /// `StartSandbox` was successful.
    started: Cell<bool>,
    /// Set when the init has ended and is deleted.
    exit: Latch<Exit>,
}

impl Supervisor {
    fn find_sandbox(&self, id: &str) -> Result<Rc<Sandbox>, Error> {
        let there = self.sandbox.borrow().clone().filter(|there| there.id == id);
        there.ok_or_else(|| Error::new(Code::NotFound, format!("sandbox not created: {id}: not found")))
    }
}
