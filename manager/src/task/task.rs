//! One task, as long as its shim answers.

use std::path::PathBuf;
use std::time::SystemTime;

use prost::Message;
use prost_types::Timestamp;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::ttrpc::client::Client;
use tare_proto::ttrpc::{self, Code};
use tokio::sync::watch;

use super::bundle::Bundle;
use super::log::Log;
use super::start::{Caller, Daemon, Endpoint};
use crate::error::{Doing as _, Error};
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
    pub(super) bundle: Bundle,
    pub(super) binary: PathBuf,
    client: Client,
    service: &'static str,
    /// Set once the shim is gone and what it left is cleaned up.
    pub(super) buried: watch::Sender<Option<Exit>>,
    _log: Log,
}

impl Task {
    /// Connects to the shim that serves this task.
    ///
    /// # Errors
    /// Nobody listens at its address.
    pub(super) async fn connect(
        namespace: &Namespace,
        id: &Id,
        bundle: Bundle,
        binary: PathBuf,
        endpoint: &Endpoint,
        log: Log,
    ) -> Result<Task, Error> {
        let path = endpoint.path().map_err(|why| Error::Unimplemented(format!("the shim of {id} {why}")))?;
        let client =
            Client::connect(path).await.doing(|| format!("connecting to the shim of {id} at {}", path.display()))?;
        let service = if endpoint.version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" };
        let buried = watch::Sender::new(None);
        Ok(Task { namespace: namespace.clone(), id: id.clone(), bundle, binary, client, service, buried, _log: log })
    }

    /// Calls the shim. The messages of version 2 and 3 are the same.
    ///
    /// # Errors
    /// The shim's, or `Unavailable` when it is lost.
    pub async fn call<R: Message + Default>(&self, method: &str, request: &impl Message) -> Result<R, Error> {
        self.client.call(self.service, method, request, self.namespace.as_str()).await.map_err(from_shim)
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

    pub(super) fn is_lost(&self) -> bool {
        self.client.is_lost()
    }

    /// Returns when the shim is gone.
    pub(super) async fn lost(&self) {
        self.client.lost().await;
    }

    /// Returns when the shim is gone and what it left is cleaned up.
    pub(super) async fn burial(&self) -> Result<Exit, Error> {
        let mut buried = self.buried.subscribe();
        let exit = buried.wait_for(Option::is_some).await;
        let gone = || Error::Unavailable(format!("waiting for task {}: its shim is gone", self.id));
        exit.ok().and_then(|exit| exit.clone()).ok_or_else(gone)
    }

    pub(super) fn caller<'a>(&'a self, daemon: &'a Daemon) -> Caller<'a> {
        let (binary, bundle) = (&self.binary, &self.bundle.path);
        Caller { daemon, binary, namespace: &self.namespace, id: &self.id, bundle }
    }
}

/// The classes that a shim's code may name, with the words that the error adds again when it is told.
type Class = (Code, &'static str, fn(String) -> Error);
const CLASSES: &[Class] = &[
    (Code::NotFound, ": not found", Error::NotFound),
    (Code::AlreadyExists, ": already exists", Error::AlreadyExists),
    (Code::InvalidArgument, ": invalid argument", Error::InvalidArgument),
    (Code::FailedPrecondition, ": failed precondition", Error::FailedPrecondition),
    (Code::Unavailable, ": unavailable", Error::Unavailable),
    (Code::ResourceExhausted, ": resource exhausted", Error::ResourceExhausted),
    (Code::Unimplemented, ": not implemented", Error::Unimplemented),
];

/// A shim's refusal, in its words: clients look at them.
fn from_shim(error: ttrpc::Error) -> Error {
    let ttrpc::Error { code, message } = error;
    match CLASSES.iter().find(|(class, ..)| *class as i32 == code) {
        Some((_, words, class)) => class(message.strip_suffix(words).unwrap_or(&message).to_owned()),
        None => Error::Unknown(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shims_words_reach_the_client_once() {
        for text in ["container not created: not found", "container not created"] {
            let error = from_shim(ttrpc::Error::new(Code::NotFound, text));
            assert_eq!(error, Error::NotFound("container not created".into()));
            assert_eq!(error.to_string(), "container not created: not found");
        }
        let other = from_shim(ttrpc::Error { code: 2, message: "OCI runtime create failed: no".into() });
        assert_eq!(other, Error::Unknown("OCI runtime create failed: no".into()));
    }
}
