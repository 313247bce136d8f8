//! One task, as long as its shim answers.

use std::time::SystemTime;

use prost::Message;
use prost_types::Timestamp;
use tare_proto::containerd::task::v3 as pb;
use tokio::sync::watch;

use super::shim::Shim;
use crate::error::Error;
use crate::names::{Id, Namespace};

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub pid: u32,
    pub status: u32,
    pub at: Timestamp,
}

impl Exit {
    /// For a task whose shim died and took the truth along: containerd's word for it.
    pub(super) fn unknown() -> Exit {
        Exit { pid: 0, status: 255, at: SystemTime::now().into() }
    }
}

impl From<pb::DeleteResponse> for Exit {
    fn from(response: pb::DeleteResponse) -> Exit {
        Exit { pid: response.pid, status: response.exit_status, at: response.exited_at.unwrap_or_default() }
    }
}

/// A task that has a shim.
pub struct Task {
    pub namespace: Namespace,
    pub id: Id,
    pub(super) shim: Shim,
    service: &'static str,
    /// Set once the shim is gone and what it left is cleaned up.
    pub(super) buried: watch::Sender<Option<Exit>>,
}

impl Task {
    pub(super) fn of(shim: Shim) -> Task {
        let service = if shim.endpoint.version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" };
        let buried = watch::Sender::new(None);
        Task { namespace: shim.namespace.clone(), id: shim.id.clone(), shim, service, buried }
    }

    /// Calls the shim. The messages of version 2 and 3 are the same.
    ///
    /// # Errors
    /// The shim's, or `Unavailable` when it is lost.
    pub async fn call<R: Message + Default>(&self, method: &str, request: &impl Message) -> Result<R, Error> {
        self.shim.call(self.service, method, request).await
    }

    /// Calls another service of the shim.
    ///
    /// # Errors
    /// As for [`Task::call`].
    pub async fn call_of<R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Error> {
        self.shim.call(service, method, request).await
    }

    /// How the process ends, once it does. If its shim dies first, what cleaning up found out.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn wait(&self, exec: &str) -> Result<Exit, Error> {
        let request = pb::WaitRequest { id: self.id.to_string(), exec_id: exec.to_owned() };
        match self.call::<pb::WaitResponse>("Wait", &request).await {
            Ok(answer) => Ok(Exit { pid: 0, status: answer.exit_status, at: answer.exited_at.unwrap_or_default() }),
            Err(Error::Unavailable(_)) => self.burial().await,
            Err(error) => Err(error),
        }
    }

    pub async fn state(&self, exec: &str) -> Result<pb::StateResponse, Error> {
        self.call("State", &pb::StateRequest { id: self.id.to_string(), exec_id: exec.to_owned() }).await
    }

    /// Returns when the shim is gone and what it left is cleaned up.
    pub(super) async fn burial(&self) -> Result<Exit, Error> {
        let mut buried = self.buried.subscribe();
        let exit = buried.wait_for(Option::is_some).await;
        let gone = || Error::Unavailable(format!("waiting for task {}: its shim is gone", self.id));
        exit.ok().and_then(|exit| exit.clone()).ok_or_else(gone)
    }
}
