//! The streaming server: Exec, Attach and PortForward answer a URL with a token, and whoever comes with it gets the
//! streams, over SPDY/3.1 or WebSocket.
//!
//! ```text
//!  token ─ server ─┬─ spdy ───────┬─ remote ── Work::{exec, attach}
//!                  └─ websocket ──┴─ forward ─ Work::forward
//! ```
//!
//! A stream of a client is one end of a pipe in memory with a bound, whatever the protocol below: who reads slowly is
//! written to slowly, down to the socket.
//!
//! Source: kubernetes/streaming (`pkg/httpstream`, `pkg/cri`), kubectl.

mod forward;
mod negotiate;
mod remote;
mod server;
mod session;
pub mod spdy;
mod status;
mod tls;
mod token;
pub mod websocket;

use std::future::Future;

use tare_proto::runtime::v1 as pb;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::Cri;
use super::exec::Streams;
use super::rows::ContainerState;
use crate::error::{Error, Result};
pub use server::{Server, Settings};

/// What is done with a client's streams. A future that is dropped is a client that has gone.
pub trait Work: Clone + Send + Sync + 'static {
    /// Runs a program in a container; its exit code.
    fn exec(
        &self,
        container: &str,
        args: &[String],
        tty: bool,
        streams: Streams,
    ) -> impl Future<Output = Result<i32>> + Send;

    /// Connects to a container's own streams.
    fn attach(&self, container: &str, streams: Streams) -> impl Future<Output = Result<()>> + Send;

    /// Connects to a port of a pod.
    fn forward(&self, sandbox: &str, port: u16, client: DuplexStream) -> impl Future<Output = Result<()>> + Send;
}

impl Cri {
    /// Serves streams until the returned task is aborted.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve_streams(&self) -> Result<JoinHandle<()>> {
        let (server, serving) = Server::start(&self.config.streaming, self.clone()).await?;
        // Whoever serves twice keeps the first one's addresses, and both work.
        let _ = self.streams.set(server);
        Ok(serving)
    }

    pub(super) fn exec_url(&self, request: pb::ExecRequest) -> Result<String> {
        let container_id = self.running_container(&request.container_id)?;
        self.streams()?.exec(pb::ExecRequest { container_id, ..request })
    }

    pub(super) fn attach_url(&self, request: pb::AttachRequest) -> Result<String> {
        let container_id = self.running_container(&request.container_id)?;
        self.streams()?.attach(pb::AttachRequest { container_id, ..request })
    }

    pub(super) fn port_forward_url(&self, request: pb::PortForwardRequest) -> Result<String> {
        let pod_sandbox_id = self.pods.find(&request.pod_sandbox_id)?.row().id.clone();
        self.streams()?.port_forward(pb::PortForwardRequest { pod_sandbox_id, ..request })
    }

    fn streams(&self) -> Result<&Server> {
        self.streams.get().ok_or_else(|| Error::Unavailable("the streaming server does not listen yet".into()))
    }

    /// The whole id of a container that runs.
    fn running_container(&self, id: &str) -> Result<String> {
        let row = self.containers.find(id)?.row();
        match row.state() {
            ContainerState::Running => Ok(row.id.clone()),
            state => Err(Error::FailedPrecondition(format!("container {id:?} is in {state:?} state"))),
        }
    }
}

impl Work for Cri {
    async fn exec(&self, container: &str, args: &[String], tty: bool, streams: Streams) -> Result<i32> {
        self.exec_in(container, args, tty, streams).await
    }

    async fn attach(&self, container: &str, streams: Streams) -> Result<()> {
        self.attach_to(container, streams).await
    }

    async fn forward(&self, sandbox: &str, port: u16, client: DuplexStream) -> Result<()> {
        self.forward_to(sandbox, port, client).await
    }
}
