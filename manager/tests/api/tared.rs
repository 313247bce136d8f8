//! The daemon under test, and what is said to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

/// A daemon on folders and sockets of its own, gone when dropped.
pub struct Tared {
    pub server: Child,
    pub dir: TempDir,
}

impl Tared {
    pub async fn start() -> Tared {
        let dir = tempfile::tempdir().unwrap();
        let mut tared = Tared { server: launch(dir.path()), dir };
        tared.wait().await;
        tared
    }

    /// With this configuration; `DIR` in it is the daemon's folder.
    pub async fn configured(text: &str) -> Tared {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c.toml"), text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        let mut tared = Tared { server: launch(dir.path()), dir };
        tared.wait().await;
        tared
    }

    pub async fn restart(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        self.server = launch(self.dir.path());
        self.wait().await;
    }

    async fn wait(&mut self) {
        while tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            assert!(self.server.try_wait().unwrap().is_none(), "tared ended: {}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn channel(&self) -> Channel {
        channel(self.socket()).await
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

pub async fn channel(socket: PathBuf) -> Channel {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://tared").connect_with_connector(tower::service_fn(connect)).await.unwrap()
}

impl Drop for Tared {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub fn tared(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tared"));
    command.arg("--root").arg(dir.join("root")).arg("--state").arg(dir.join("state"));
    command.arg("--address").arg(dir.join("d.sock"));
    let config = dir.join("c.toml");
    if config.exists() {
        command.arg("--config").arg(config);
    }
    command
}

fn launch(dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    tared(dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

pub fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    request
}

pub fn under_lease<T>(lease: &str, mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
    request
}
