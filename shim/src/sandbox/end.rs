//! How a sandbox ends: by itself, by `StopSandbox`, or with the shim by `ShutdownSandbox`.

use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use tare_proto::containerd::runtime::sandbox::v1::{
    ShutdownSandboxRequest, ShutdownSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use tare_proto::ttrpc::{Code, Error};

use super::Sandbox;
use crate::connection::Connection;
use crate::error::{Doing as _, Failed};
use crate::log;
use crate::reactor::{self, Either};
use crate::runtime::Streams;
use crate::task::{Supervisor, timestamp};

/// Go's client takes whichever it looks at first where an answer and the connection's end come together, and containerd makes
/// an error of the latter. Of a task's `Shutdown` it does not.
const LAST_ANSWER: Duration = Duration::from_millis(100);

impl Supervisor {
    /// Waits for the init's end and has the runtime delete it, before anyone hears of it: who does may remove the pod's
    /// cgroup.
    pub(super) fn watch_sandbox(self: &Rc<Self>, sandbox: Rc<Sandbox>) {
        let this = self.clone();
        reactor::spawn(async move {
            let exit = sandbox.init.exit().await;
            let words = ["delete", "--force", &sandbox.id];
            if let Err(error) = sandbox.runtime.run(&this.children, &words, Streams::null()).await {
                log::warn(&format!("deleting the sandbox {}: {error}", sandbox.id));
            }
            sandbox.exit.set(exit);
        });
    }

    pub(super) async fn wait_sandbox(
        &self,
        request: WaitSandboxRequest,
        from: &Connection,
    ) -> Result<WaitSandboxResponse, Error> {
        let sandbox = self.find_sandbox(&request.sandbox_id)?;
        match reactor::race(sandbox.exit.wait(), from.closed.wait()).await {
            Either::First(exit) => Ok(WaitSandboxResponse { exit_status: exit.status, exited_at: timestamp(exit.at) }),
            Either::Second(()) => Err(Error::new(Code::Unavailable, "the client is gone")),
        }
    }

    pub(super) async fn stop_sandbox(&self, request: StopSandboxRequest) -> Result<StopSandboxResponse, Error> {
        self.find_sandbox(&request.sandbox_id)?.stop().await?;
        Ok(StopSandboxResponse {})
    }

    /// The daemon removes the containers before; what it has left is ended and deleted here, since nobody could do it
    /// afterwards. Of a sandbox that could not be created, only the shim is there to end.
    pub(super) async fn shutdown_sandbox(
        self: &Rc<Self>,
        request: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse, Error> {
        let sandbox = self.sandbox.borrow().clone();
        if let Some(sandbox) = sandbox {
            if sandbox.id != request.sandbox_id {
                return Err(Error::new(Code::NotFound, format!("sandbox {}: not found", request.sandbox_id)));
            }
            self.force_out_all().await;
            sandbox.stop().await?;
            *self.sandbox.borrow_mut() = None;
        }
        self.over.set(LAST_ANSWER);
        Ok(ShutdownSandboxResponse {})
    }
}

impl Sandbox {
    /// At once: the init has nothing to save, and however it ends, the kernel kills what shares its PID namespace.
    async fn stop(&self) -> Result<(), Failed> {
        match self.init.signal(libc::SIGKILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).doing(|| format!("killing the sandbox {}", self.id)),
        }
        self.exit.wait().await;
        Ok(())
    }
}
