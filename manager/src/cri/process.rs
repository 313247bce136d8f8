//! A program that is added to a container.

use std::sync::Arc;

use prost_types::Any;
use serde_json::{Value, json};
use tare_proto::containerd::task::v3 as shim;

use super::record::off_thread;
use super::rows::ContainerState;
use super::{Cri, namespace, new_id};
use crate::error::{Error, Result};
use crate::names::Id;
use crate::task::{Exit, Task};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Where its streams are: paths of fifos, or nothing.
#[derive(Default)]
pub struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

pub struct Exec {
    task: Arc<Task>,
    id: String,
}

impl Cri {
    /// The task of a container that runs.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn running(&self, container: &str) -> Result<(Id, Arc<Task>)> {
        let record = self.containers.find(container)?;
        let state = record.row().state();
        if state != ContainerState::Running {
            return Err(Error::FailedPrecondition(format!("container {:?} is in {state:?} state", record.id)));
        }
        let id = Id::parse(&record.id)?;
        let task = self.parts.tasks.get(&namespace(), &id)?;
        Ok((id, task))
    }

    /// Adds a program to a container that runs: with the container's own user, rights and variables, and another command.
    ///
    /// # Errors
    /// It does not run, or its shim refused.
    pub(super) async fn add(&self, container: &str, args: &[String], tty: bool, paths: Paths) -> Result<Exec> {
        if args.is_empty() {
            return Err(Error::InvalidArgument("cmd must be set".into()));
        }
        let (id, task) = self.running(container)?;
        let (cri, of) = (self.clone(), id.clone());
        let record = off_thread(move || cri.parts.containers.get(&namespace(), &of)).await?;
        let spec: Value = serde_json::from_slice(&record.spec.unwrap_or_default().value)
            .map_err(|error| Error::Internal(format!("reading the specification of container {id}: {error}")))?;
        let mut process = spec["process"].clone();
        (process["args"], process["terminal"]) = (json!(args), json!(tty));
        if tty && let Some(environment) = process["env"].as_array_mut() {
            environment.push(json!("TERM=xterm"));
        }
        let exec = Exec { task, id: new_id() };
        let request = shim::ExecProcessRequest {
            id: id.to_string(),
            exec_id: exec.id.clone(),
            terminal: tty,
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            spec: Some(Any { type_url: PROCESS.into(), value: process.to_string().into_bytes() }),
        };
        exec.task.call::<()>("Exec", &request).await?;
        Ok(exec)
    }
}

impl Exec {
    pub async fn start(&self) -> Result<()> {
        let request = shim::StartRequest { id: self.task.id.to_string(), exec_id: self.id.clone() };
        self.task.call::<shim::StartResponse>("Start", &request).await.map(|_| ())
    }

    pub async fn wait(&self) -> Result<Exit> {
        self.task.wait(&self.id).await
    }

    /// With what it has started, and waits for its end.
    pub async fn kill(&self) -> Result<()> {
        let (id, exec_id) = (self.task.id.to_string(), self.id.clone());
        let request = shim::KillRequest { id, exec_id, signal: libc::SIGKILL.unsigned_abs(), all: true };
        match self.task.call::<()>("Kill", &request).await {
            Err(Error::NotFound(_)) => Ok(()), // it has ended just now
            Ok(()) => self.wait().await.map(|_| ()),
            Err(error) => Err(error),
        }
    }

    /// What cannot be deleted goes with its container.
    pub async fn delete(&self) {
        let request = shim::DeleteRequest { id: self.task.id.to_string(), exec_id: self.id.clone() };
        if let Err(error) = self.task.call::<shim::DeleteResponse>("Delete", &request).await {
            tracing::warn!(container = %self.task.id, exec = self.id, "deleting an exec: {error}");
        }
    }

    pub fn process(&self) -> Process {
        Process { task: self.task.clone(), exec: self.id.clone() }
    }
}

/// A process that clients talk to: a container's first one if `exec` is empty.
pub struct Process {
    pub task: Arc<Task>,
    pub exec: String,
}

impl Process {
    /// The end of its input.
    pub async fn close_stdin(&self) -> Result<()> {
        let request = shim::CloseIoRequest { id: self.task.id.to_string(), exec_id: self.exec.clone(), stdin: true };
        self.task.call::<()>("CloseIO", &request).await
    }

    pub async fn resize(&self, (width, height): (u16, u16)) -> Result<()> {
        let (id, exec_id) = (self.task.id.to_string(), self.exec.clone());
        let request = shim::ResizePtyRequest { id, exec_id, width: width.into(), height: height.into() };
        self.task.call::<()>("ResizePty", &request).await
    }
}
