//! What the streaming server does with a client's streams: a process in a container, a container's own streams, a port of a
//! pod.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Cri;
use crate::error::{Error, Result};

pub type Input = Box<dyn AsyncRead + Send + Unpin>;
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// The client's ends. What is none was not asked for. The end of `stdin` is the end of the process's input.
pub struct Streams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    /// None with a terminal.
    pub stderr: Option<Output>,
    /// Columns and rows, each time the client's window changes.
    pub sizes: mpsc::Receiver<(u16, u16)>,
}

impl Cri {
    /// Runs a program in a container until it ends; its exit code.
    ///
    /// # Errors
    /// The container does not run, or the program cannot be started.
    pub async fn exec_in(&self, container: &str, _args: &[String], _tty: bool, _streams: Streams) -> Result<i32> {
        Err(Error::Unimplemented(format!("exec in {container}")))
    }

    /// Connects to a container's own streams until it ends or the client goes.
    ///
    /// # Errors
    /// The container does not run.
    pub async fn attach_to(&self, container: &str, _streams: Streams) -> Result<()> {
        Err(Error::Unimplemented(format!("attaching to {container}")))
    }

    /// Passes bytes between a client and a port on `localhost` of the pod's network, until either has ended.
    ///
    /// # Errors
    /// There is no such pod, or nobody listens.
    pub async fn forward_to(&self, sandbox: &str, port: u16, _client: tokio::io::DuplexStream) -> Result<()> {
        Err(Error::Unimplemented(format!("forwarding to port {port} of {sandbox}")))
    }
}
