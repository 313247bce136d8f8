//! What is asked and changes nothing: `State`, `Wait`, `Pids`, `Stats`, `Connect`.

use std::collections::BTreeMap;

use tare_proto::any;
use tare_proto::containerd::runc::v1::ProcessDetails;
use tare_proto::containerd::task::v3::{
    ConnectRequest, ConnectResponse, PidsRequest, PidsResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, WaitRequest, WaitResponse,
};
use tare_proto::containerd::v1::types::{ProcessInfo, Status};
use tare_proto::ttrpc::{Code, Error};

use super::process::timestamp;
use super::{Supervisor, failed};
use crate::cgroup::metrics;
use crate::connection::Connection;
use crate::phase::Phase;
use crate::reactor::{self, Either};

impl Supervisor {
    pub(super) fn state(&self, request: &StateRequest) -> Result<StateResponse, Error> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.exit.get();
        let asked = process.asked.clone();
        Ok(StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: process.pid(),
            status: status(process.phase()).into(),
            stdin: asked.stdin,
            stdout: asked.stdout,
            stderr: asked.stderr,
            terminal: asked.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.and_then(|exit| timestamp(exit.at)),
            exec_id: process.exec.clone(),
        })
    }

    /// Answers when the exit was told, however long that takes; if the client goes away, nobody is left to answer.
    pub(super) async fn wait(&self, request: WaitRequest, from: &Connection) -> Result<WaitResponse, Error> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        match reactor::race(process.exit.wait(), from.closed.wait()).await {
            Either::First(exit) => Ok(WaitResponse { exit_status: exit.status, exited_at: timestamp(exit.at) }),
            Either::Second(()) => Err(Error::new(Code::Unavailable, "the client is gone")),
        }
    }

    /// All processes of the container, as its runtime counts them.
    pub(super) async fn pids(&self, request: PidsRequest) -> Result<PidsResponse, Error> {
        let container = self.container(&request.id)?;
        let text = container.runtime.output(&self.children, &["ps", "--format", "json", &container.id]).await;
        let text = text.map_err(|error| failed(format!("OCI runtime ps failed: {error}")))?;
        let pids: Option<Vec<u32>> =
            serde_json::from_slice(&text).map_err(|error| failed(format!("OCI runtime ps: {error}")))?;
        let execs: BTreeMap<u32, String> =
            container.execs.borrow().values().map(|exec| (exec.pid(), exec.exec.clone())).collect();
        let details = |pid| {
            let exec_id = execs.get(&pid)?.clone();
            Some(any::pack("containerd.runc.v1.ProcessDetails", &ProcessDetails { exec_id }))
        };
        let processes = pids.unwrap_or_default().into_iter();
        Ok(PidsResponse { processes: processes.map(|pid| ProcessInfo { pid, info: details(pid) }).collect() })
    }

    pub(super) fn stats(&self, request: &StatsRequest) -> Result<StatsResponse, Error> {
        let container = self.container(&request.id)?;
        let stats = container.cgroups.get().and_then(metrics::of);
        let missing = || Error::new(Code::NotFound, format!("cgroup of {} does not exist: not found", container.id));
        Ok(StatsResponse { stats: Some(stats.ok_or_else(missing)?) })
    }

    /// Answers for a container that is not there too: the daemon asks before it knows.
    #[allow(clippy::unnecessary_wraps)] // as all methods
    pub(super) fn connect(&self, request: &ConnectRequest) -> Result<ConnectResponse, Error> {
        let task_pid = self.container(&request.id).map_or(0, |container| container.init.pid());
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version: String::new() })
    }
}

fn status(phase: Phase) -> Status {
    match phase {
        // Started is what the daemon was told of, not what is under way.
        Phase::Created | Phase::Starting | Phase::Early(_) => Status::Created,
        Phase::Running => Status::Running,
        Phase::Pausing => Status::Pausing,
        Phase::Paused => Status::Paused,
        Phase::Stopped(_) | Phase::Gone => Status::Stopped,
    }
}
