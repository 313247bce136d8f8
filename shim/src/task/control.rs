//! What changes a running container: `Pause`, `Resume`, `Update`, and its terminal and input.

use std::rc::Rc;
use std::time::Duration;

use tare_proto::containerd::task::v3::{
    CloseIoRequest, PauseRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, UpdateTaskRequest,
};
use tare_proto::ttrpc::Error;

use super::{Supervisor, failed, invalid, precondition};
use crate::error::Doing as _;
use crate::events;
use crate::phase::{Event, Phase};
use crate::runtime::Streams;

impl Supervisor {
    pub(super) async fn pause(self: &Rc<Self>, request: PauseRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if container.init.on(Event::PauseCalled).is_err() {
            let word = container.init.phase().word();
            return Err(precondition(format!("cannot pause a {word} container: failed precondition")));
        }
        let paused = container.runtime.run(&self.children, &["pause", &container.id], Streams::null()).await;
        let event = if paused.is_ok() { Event::Paused } else { Event::PauseFailed };
        self.happened(&container, &container.init, event);
        paused.map_err(|error| failed(format!("OCI runtime pause failed: {error}")))
    }

    pub(super) async fn resume(self: &Rc<Self>, request: ResumeRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if container.init.phase() != Phase::Paused {
            let word = container.init.phase().word();
            return Err(precondition(format!("cannot resume a {word} container: failed precondition")));
        }
        let resumed = container.runtime.run(&self.children, &["resume", &container.id], Streams::null()).await;
        resumed.map_err(|error| failed(format!("OCI runtime resume failed: {error}")))?;
        self.happened(&container, &container.init, Event::Resumed);
        Ok(())
    }

    /// The runtime reads the new limits as JSON from standard input.
    pub(super) async fn update(&self, request: UpdateTaskRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if let phase @ (Phase::Stopped(_) | Phase::Gone) = container.init.phase() {
            return Err(precondition(format!("cannot update a {} container: failed precondition", phase.word())));
        }
        let resources = request.resources.ok_or_else(|| invalid("resources: they are missing"))?;
        let input = events::input(&resources.value).doing(|| "making a file in memory".into())?;
        let streams = Streams { stdin: input.into(), ..Streams::null() };
        let words = ["update", "--resources=-", &container.id];
        let updated = container.runtime.run(&self.children, &words, streams).await;
        updated.map_err(|error| failed(format!("OCI runtime update failed: {error}")))
    }

    /// Without a terminal there is nothing to do, and that is no error.
    pub(super) fn resize_pty(&self, request: &ResizePtyRequest) -> Result<(), Error> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let size =
            |value: u32, field| u16::try_from(value).map_err(|_| invalid(format!("{field}: {value} is too large")));
        let (width, height) = (size(request.width, "width")?, size(request.height, "height")?);
        let stdio = process.stdio();
        let Some(terminal) = stdio.terminal() else { return Ok(()) };
        Ok(terminal.resize(width, height).doing(|| "resizing the terminal".into())?)
    }

    pub(super) fn close_io(&self, request: &CloseIoRequest) -> Result<(), Error> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_input();
        }
        Ok(())
    }

    /// Every task's end brings one: it counts only when none is left. A pod has a `ShutdownSandbox` of its own.
    #[allow(clippy::unnecessary_wraps)] // as all methods
    pub(super) fn shutdown(&self, _: &ShutdownRequest) -> Result<(), Error> {
        let is_empty = self.containers.borrow().is_empty() && self.reserved.borrow().is_empty();
        if is_empty && self.sandbox.borrow().is_none() {
            self.over.set(Duration::ZERO);
        }
        Ok(())
    }
}
