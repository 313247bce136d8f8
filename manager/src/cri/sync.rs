//! ExecSync: a program in a container, from its start to its end, with what it said.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost_types::Any;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::{Value, json};
use tare_proto::containerd::task::v3 as shim;
use tare_proto::runtime::v1 as pb;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::record::off_thread;
use super::rows::ContainerState;
use super::{Cri, folders, namespace, new_id};
use crate::error::{Doing as _, Error, Result};
use crate::names::Id;
use crate::task::Task;

/// Of each output; what comes after it is read and thrown away, so that the program ends (CVE-2022-1708).
const KEPT: usize = 16 << 20;
/// How long output may take to drain after the program has ended: a child of it may hold the other end for ever.
const DRAIN: Duration = Duration::from_secs(10);
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl Cri {
    pub(super) async fn exec_sync(&self, request: pb::ExecSyncRequest) -> Result<pb::ExecSyncResponse> {
        if request.cmd.is_empty() {
            return Err(Error::InvalidArgument("cmd must be set".into()));
        }
        let container = self.containers.find(&request.container_id)?;
        let (task, process) = self.process_in(&container.id, &request.cmd, false).await?;
        let exec = new_id();
        let [_, mounted] = self.folders.of_container(&container.id);
        let place = mounted.join(&exec);
        let streams = Streams::make(&place).await?;
        let added = Exec { task, id: exec, place: place.clone() };
        let outcome = added.run(process, streams, request.timeout).await;
        off_thread(move || folders::remove(&place)).await?;
        outcome
    }

    /// The container's task, and the container's own process with another command.
    ///
    /// # Errors
    /// The container does not run.
    pub(super) async fn process_in(
        &self,
        container: &str,
        cmd: &[String],
        tty: bool,
    ) -> Result<(std::sync::Arc<Task>, Value)> {
        let state = self.containers.find(container)?.row().state();
        if state != ContainerState::Running {
            return Err(Error::FailedPrecondition(format!("container {container:?} is in {state:?} state")));
        }
        let id = Id::parse(container)?;
        let task = self.parts.tasks.get(&namespace(), &id)?;
        let cri = self.clone();
        let record = off_thread(move || cri.parts.containers.get(&namespace(), &id)).await?;
        let spec: Value = serde_json::from_slice(&record.spec.unwrap_or_default().value)
            .map_err(|error| Error::Internal(format!("reading the specification of {container}: {error}")))?;
        let mut process = spec["process"].clone();
        (process["args"], process["terminal"]) = (json!(cmd), json!(tty));
        if tty && let Some(environment) = process["env"].as_array_mut() {
            environment.push(json!("TERM=xterm"));
        }
        Ok((task, process))
    }
}

/// The reading ends of a program's outputs.
struct Streams {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Streams {
    async fn make(place: &Path) -> Result<Streams> {
        let folder = place.to_owned();
        off_thread(move || {
            folders::make(&folder, 0o700)?;
            for name in ["stdout", "stderr"] {
                let fifo = folder.join(name);
                rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                    .doing(|| format!("making {}", fifo.display()))?;
            }
            Ok(())
        })
        .await?;
        let open = |name: &str| {
            let path = place.join(name);
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let file = std::fs::File::options().read(true).custom_flags(flags).open(&path);
            let doing = || format!("opening {}", path.display());
            pipe::Receiver::from_file(file.doing(doing)?).doing(doing)
        };
        Ok(Streams { stdout: open("stdout")?, stderr: open("stderr")? })
    }
}

/// A program that is added to a container.
pub(super) struct Exec {
    pub task: std::sync::Arc<Task>,
    pub id: String,
    /// Where its fifos are.
    pub place: PathBuf,
}

impl Exec {
    async fn run(&self, process: Value, streams: Streams, timeout: i64) -> Result<pb::ExecSyncResponse> {
        let fifo = |name: &str| self.place.join(name).display().to_string();
        self.add(&process, false, String::new(), fifo("stdout"), fifo("stderr")).await?;
        let outcome = self.attend(streams, timeout).await;
        self.delete().await;
        outcome
    }

    pub(super) async fn add(
        &self,
        process: &Value,
        terminal: bool,
        stdin: String,
        stdout: String,
        stderr: String,
    ) -> Result<()> {
        let request = shim::ExecProcessRequest {
            id: self.task.id.to_string(),
            exec_id: self.id.clone(),
            terminal,
            stdin,
            stdout,
            stderr,
            spec: Some(Any { type_url: PROCESS.into(), value: process.to_string().into_bytes() }),
        };
        self.task.call::<()>("Exec", &request).await
    }

    pub(super) async fn start(&self) -> Result<()> {
        let request = shim::StartRequest { id: self.task.id.to_string(), exec_id: self.id.clone() };
        self.task.call::<shim::StartResponse>("Start", &request).await.map(|_| ())
    }

    pub(super) async fn kill(&self) -> Result<()> {
        let (id, exec_id) = (self.task.id.to_string(), self.id.clone());
        let request = shim::KillRequest { id, exec_id, signal: libc::SIGKILL.unsigned_abs(), all: true };
        match self.task.call::<()>("Kill", &request).await {
            Err(Error::NotFound(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What cannot be deleted goes with its container.
    pub(super) async fn delete(&self) {
        let request = shim::DeleteRequest { id: self.task.id.to_string(), exec_id: self.id.clone() };
        if let Err(error) = self.task.call::<shim::DeleteResponse>("Delete", &request).await {
            tracing::warn!(container = %self.task.id, exec = self.id, "deleting an exec: {error}");
        }
    }

    /// Starts it and reads until it has ended, or its time is up; a timeout of 0 is none.
    async fn attend(&self, streams: Streams, timeout: i64) -> Result<pb::ExecSyncResponse> {
        let limit = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        self.start().await?;
        let stdout = tokio::spawn(collect(streams.stdout));
        let stderr = tokio::spawn(collect(streams.stderr));
        let ended = self.task.wait(&self.id);
        let exit = match limit {
            None => ended.await?,
            Some(limit) => match tokio::time::timeout(limit, ended).await {
                Ok(exit) => exit?,
                Err(_) => {
                    self.kill().await?;
                    self.task.wait(&self.id).await?;
                    let text = format!(
                        "failed to exec in container: timeout {} s exceeded: context deadline exceeded",
                        limit.as_secs()
                    );
                    return Err(Error::DeadlineExceeded(text));
                }
            },
        };
        let drained = async { tokio::join!(drain(stdout), drain(stderr)) };
        let (stdout, stderr) = drained.await;
        Ok(pb::ExecSyncResponse { stdout, stderr, exit_code: exit.status.cast_signed() })
    }
}

/// What was read by now, if the end does not come.
async fn drain(mut reading: tokio::task::JoinHandle<Vec<u8>>) -> Vec<u8> {
    match tokio::time::timeout(DRAIN, &mut reading).await {
        Ok(read) => read.unwrap_or_default(),
        Err(_) => {
            reading.abort();
            Vec::new()
        }
    }
}

async fn collect(mut fifo: pipe::Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = fifo.read(&mut buffer).await {
        let room = KEPT - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
    kept
}
