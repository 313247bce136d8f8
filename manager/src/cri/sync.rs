//! ExecSync: a program in a container, from its start to its end, with what it said.

use std::time::Duration;

use tare_proto::runtime::v1 as pb;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fifo::Fifos;
use super::process::{Exec, Paths};
use super::{Cri, new_id};
use crate::error::{Error, Result};

/// Of both outputs together, so that the answer is a message that clients take. What comes after it is read and thrown
/// away, so that the program ends (CVE-2022-1708).
const KEPT: usize = (16 << 20) - 4096;

impl Cri {
    pub(super) async fn exec_sync(&self, request: pb::ExecSyncRequest) -> Result<pb::ExecSyncResponse> {
        let container = self.running(&request.container_id)?.0;
        let [_, mounted] = self.folders.of_container(container.as_str());
        let fifos = Fifos::make(mounted.join(new_id()), &["stdout", "stderr"]).await?;
        let outcome = self.exec_with(container.as_str(), &request, &fifos).await;
        fifos.remove().await?;
        outcome
    }

    async fn exec_with(
        &self,
        container: &str,
        request: &pb::ExecSyncRequest,
        fifos: &Fifos,
    ) -> Result<pb::ExecSyncResponse> {
        let (stdout, stderr) = (fifos.reader("stdout")?, fifos.reader("stderr")?);
        let paths = Paths { stdin: String::new(), stdout: fifos.path("stdout"), stderr: fifos.path("stderr") };
        let drain = Duration::from_secs(self.config.drain_exec_sync_io_seconds);
        let exec = self.add(container, &request.cmd, false, paths).await?;
        let outcome = attend(&exec, stdout, stderr, request.timeout, drain).await;
        match &outcome {
            Ok(_) => exec.delete().await,
            // Its shim waits a while for output that somebody still holds: the client need not.
            Err(_) => drop(tokio::spawn(async move { exec.delete().await })),
        }
        outcome
    }
}

/// Starts it and reads until it has ended, or its time is up; a timeout of 0 is none. `drain` is how long output may take
/// after the end: a child of the program may hold the other end for ever.
async fn attend(
    exec: &Exec,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    timeout: i64,
    drain: Duration,
) -> Result<pb::ExecSyncResponse> {
    let limit = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    exec.start().await?;
    let (stdout, stderr) = (Output::read(stdout), Output::read(stderr));
    let exit = match limit {
        None => exec.wait().await?,
        Some(limit) => match tokio::time::timeout(limit, exec.wait()).await {
            Ok(exit) => exit?,
            Err(_) => {
                exec.kill().await?;
                return Err(Error::DeadlineExceeded(format!(
                    "failed to exec in container: timeout {}s exceeded: context deadline exceeded",
                    limit.as_secs()
                )));
            }
        },
    };
    let (stdout, stderr) = tokio::join!(stdout.drained(drain), stderr.drained(drain));
    let (mut stdout, mut stderr) = (stdout?, stderr?);
    stderr.truncate((KEPT / 2).max(KEPT - stdout.len()));
    stdout.truncate(KEPT - stderr.len());
    Ok(pb::ExecSyncResponse { stdout, stderr, exit_code: exit.status.cast_signed() })
}

/// What a program says, while it is read.
struct Output {
    kept: watch::Receiver<Vec<u8>>,
    reading: JoinHandle<()>,
}

impl Output {
    fn read(mut fifo: pipe::Receiver) -> Output {
        let (keep, kept) = watch::channel(Vec::new());
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = fifo.read(&mut buffer).await {
                keep.send_modify(|kept| {
                    let room = KEPT - kept.len();
                    kept.extend_from_slice(&buffer[..length.min(room)]);
                });
            }
        });
        Output { kept, reading }
    }

    /// All of it.
    ///
    /// # Errors
    /// The end does not come, in the words of containerd.
    async fn drained(mut self, limit: Duration) -> Result<Vec<u8>> {
        if tokio::time::timeout(limit, &mut self.reading).await.is_err() {
            self.reading.abort();
            return Err(Error::Unknown(format!(
                "failed to drain exec process output in {} s: it is still held by other processes",
                limit.as_secs()
            )));
        }
        Ok(self.kept.borrow_and_update().clone())
    }
}
