//! What the streaming server does with a client's streams: a process in a container, a container's own streams, a port of a
//! pod.

use std::path::{Path, PathBuf};

use tare_proto::tare::shim::v1::AttachRequest;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::fifo::{Fifos, writer};
use super::process::{Exec, Paths, Process};
use super::{Cri, new_id};
use crate::cni;
use crate::error::{Doing as _, Error, Result};

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
    /// Runs a program in a container until it ends; its exit code. If the call is dropped the program is killed: its
    /// client has gone.
    ///
    /// # Errors
    /// The container does not run, or the program cannot be started.
    pub async fn exec_in(&self, container: &str, args: &[String], tty: bool, streams: Streams) -> Result<i32> {
        let (cri, container, args) = (self.clone(), container.to_owned(), args.to_vec());
        watched(|gone| async move { cri.exec_until(&container, &args, tty, streams, gone).await }).await
    }

    async fn exec_until(
        &self,
        container: &str,
        args: &[String],
        tty: bool,
        streams: Streams,
        gone: oneshot::Receiver<()>,
    ) -> Result<i32> {
        let container = self.running(container)?.0;
        let [_, mounted] = self.folders.of_container(container.as_str());
        let fifos = Fifos::make(mounted.join(new_id()), &["stdin", "stdout", "stderr"]).await?;
        let outcome = async {
            let has_errors = streams.stderr.is_some() && !tty;
            let paths = Paths {
                stdin: if streams.stdin.is_some() { fifos.path("stdin") } else { String::new() },
                stdout: if streams.stdout.is_some() { fifos.path("stdout") } else { String::new() },
                stderr: if has_errors { fifos.path("stderr") } else { String::new() },
            };
            let copying = Copying::outputs(&fifos, streams.stdout, streams.stderr.filter(|_| has_errors))?;
            let exec = self.add(container.as_str(), args, tty, paths).await?;
            let input = streams.stdin.map(|stdin| (stdin, PathBuf::from(fifos.path("stdin")), true));
            let ended = attend(&exec, copying, input, streams.sizes, gone).await;
            exec.delete().await;
            ended
        }
        .await;
        fifos.remove().await?;
        outcome
    }

    /// Connects to a container's own streams until it ends or the client goes.
    ///
    /// # Errors
    /// The container does not run.
    pub async fn attach_to(&self, container: &str, streams: Streams) -> Result<()> {
        let (cri, container) = (self.clone(), container.to_owned());
        watched(|gone| async move { cri.attach_until(&container, streams, gone).await }).await
    }

    async fn attach_until(&self, container: &str, streams: Streams, gone: oneshot::Receiver<()>) -> Result<()> {
        let (id, task) = self.running(container)?;
        let row = self.containers.find(id.as_str())?.row();
        let config = row.config();
        let [_, mounted] = self.folders.of_container(id.as_str());
        let fifos = Fifos::make(mounted.join(new_id()), &["stdout", "stderr"]).await?;
        let outcome = async {
            let errors = streams.stderr.filter(|_| !config.tty);
            let path = |name: &str, asked: bool| if asked { fifos.path(name) } else { String::new() };
            let request = AttachRequest {
                id: id.to_string(),
                exec_id: String::new(),
                stdout: path("stdout", streams.stdout.is_some()),
                stderr: path("stderr", errors.is_some()),
            };
            let listens = streams.stdout.is_some() || errors.is_some();
            let copying = Copying::outputs(&fifos, streams.stdout, errors)?;
            if listens {
                task.call_of::<()>("tare.shim.v1.Logs", "Attach", &request).await?;
            }
            let process = Process { task, exec: String::new() };
            let input = streams.stdin.filter(|_| config.stdin);
            let feeds = input.is_some();
            let input = input.map(|stdin| (stdin, PathBuf::from(self.stdin_of(id.as_str())), config.stdin_once));
            let talking = talk(&process, input, streams.sizes);
            let session = async {
                if !listens {
                    return talking.await;
                }
                // Input may end long before the container does.
                let talking = async { talking.await.err() };
                tokio::pin!(talking);
                let ended = copying.ended();
                tokio::pin!(ended);
                tokio::select! {
                    () = &mut ended => Ok(()),
                    failed = &mut talking => match failed {
                        Some(error) => Err(error),
                        None => { ended.await; Ok(()) }
                    },
                }
            };
            let outcome = tokio::select! { outcome = session => outcome, _ = gone => Ok(()) };
            if feeds && config.stdin_once {
                process.close_stdin().await.or_else(over)?;
            }
            outcome
        }
        .await;
        fifos.remove().await?;
        outcome
    }

    /// Passes bytes between a client and a port on `localhost` of the pod's network, until either has ended.
    ///
    /// # Errors
    /// There is no such pod, or nobody listens.
    pub async fn forward_to(&self, sandbox: &str, port: u16, mut client: tokio::io::DuplexStream) -> Result<()> {
        let row = self.pods.find(sandbox)?.row();
        let doing = || format!("connecting to port {port} of sandbox {sandbox:?}");
        let connect = move || {
            let addresses: [std::net::SocketAddr; 2] =
                [(std::net::Ipv4Addr::LOCALHOST, port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
            std::net::TcpStream::connect(&addresses[..]).doing(|| format!("connecting to localhost:{port}"))
        };
        let connected = super::record::off_thread(move || match row.netns.as_str() {
            "" => connect(),
            netns => cni::netns::inside(Path::new(netns), connect),
        });
        let stream = connected.await?;
        stream.set_nonblocking(true).doing(doing)?;
        let mut stream = TcpStream::from_std(stream).doing(doing)?;
        match tokio::io::copy_bidirectional(&mut client, &mut stream).await {
            Ok(_) => Ok(()),
            // Whoever ended first need not have been polite.
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe) =>
            {
                Ok(())
            }
            Err(error) => Err(Error::io(format!("passing on port {port} of sandbox {sandbox:?}"), &error)),
        }
    }
}

/// Runs something to its end even if the caller is dropped; it is told so.
async fn watched<T, F>(work: impl FnOnce(oneshot::Receiver<()>) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (_here, gone) = oneshot::channel();
    let lost = |error: tokio::task::JoinError| Error::Internal(format!("a stream ended early: {error}"));
    tokio::spawn(work(gone)).await.map_err(lost)?
}

/// Starts a program and stays until it has ended and all of its output is with the client.
async fn attend(
    exec: &Exec,
    copying: Copying,
    input: Option<(Input, PathBuf, bool)>,
    sizes: mpsc::Receiver<(u16, u16)>,
    gone: oneshot::Receiver<()>,
) -> Result<i32> {
    exec.start().await?;
    let process = exec.process();
    let talking = tokio::spawn(async move { talk(&process, input, sizes).await });
    let exit = tokio::select! {
        exit = exec.wait() => exit,
        _ = gone => exec.kill().await.and(Err(Error::Unavailable("the client has gone".into()))),
    };
    talking.abort();
    let exit = exit?;
    copying.drained().await;
    Ok(exit.status.cast_signed())
}

/// Passes the client's input and window on. Returns when there is no more of either.
async fn talk(
    process: &Process,
    input: Option<(Input, PathBuf, bool)>,
    mut sizes: mpsc::Receiver<(u16, u16)>,
) -> Result<()> {
    let feed = async {
        let Some((mut from, to, closes)) = input else { return Ok(()) };
        let mut to = writer(&to)?;
        // A process need not read its input to its end.
        let _ = copy(&mut from, &mut to).await;
        drop(to);
        if closes { process.close_stdin().await.or_else(over) } else { Ok(()) }
    };
    let resize = async {
        while let Some(size) = sizes.recv().await {
            process.resize(size).await.or_else(over)?;
        }
        Ok(())
    };
    tokio::try_join!(feed, resize).map(|_| ())
}

/// A process that has ended takes no input and has no window.
fn over(error: Error) -> Result<()> {
    match error {
        Error::NotFound(_) | Error::Unavailable(_) | Error::FailedPrecondition(_) => Ok(()),
        error => Err(error),
    }
}

/// Output on its way to a client.
struct Copying(Vec<tokio::task::JoinHandle<()>>);

impl Copying {
    fn outputs(fifos: &Fifos, stdout: Option<Output>, stderr: Option<Output>) -> Result<Copying> {
        let mut all = Vec::new();
        for (name, client) in [("stdout", stdout), ("stderr", stderr)] {
            let Some(mut client) = client else { continue };
            let mut fifo = fifos.reader(name)?;
            all.push(tokio::spawn(async move {
                // A client that has gone is noticed elsewhere.
                let _ = copy(&mut fifo, &mut client).await;
                let _ = client.shutdown().await;
            }));
        }
        Ok(Copying(all))
    }

    /// Returns when there is no more of it.
    async fn ended(self) {
        for one in self.0 {
            let _ = one.await;
        }
    }

    /// As [`Copying::ended`], but what a child of the process holds open is not waited for.
    async fn drained(self) {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), self.ended()).await;
    }
}
