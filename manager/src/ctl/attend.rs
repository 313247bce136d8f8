//! Attending to a process in the foreground: its input, its signals, its window, and its end.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tare_proto::containerd::services::tasks::v1 as tasks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::client::{Client, said};
use super::container::start_task;
use super::keys::DetachKeys;
use super::log::read::{Own, Part, Reader};
use super::terminal::{Raw, window};

/// How long output may take to end after the process has: a child of it may hold the other end for ever.
const DRAIN: Duration = Duration::from_secs(10);

/// The process, and what we do for it.
pub struct Attendance<'a> {
    pub client: &'a Client,
    pub id: &'a str,
    /// Empty for the container's first process.
    pub exec: &'a str,
    pub tty: bool,
    /// Whether signals that we get are the process's.
    pub proxy: bool,
    /// Where our input goes.
    pub input: Option<PathBuf>,
    /// Whether the end of ours is the end of its.
    pub close: bool,
    pub keys: DetachKeys,
}

pub enum Ended {
    /// The process has ended.
    Exit(i32),
    /// We leave with this code, and it goes on.
    Left(i32),
}

enum Input {
    End,
    Detach,
}

impl Attendance<'_> {
    /// Starts the process, if it is to be started, and stays until it has ended.
    pub async fn attend(self, start: bool) -> Result<Ended> {
        let (id, exec) = (self.id, self.exec);
        let raw = if self.tty { Some(Raw::begin()?) } else { None };
        let mut signals = signals()?;
        let wait = tasks::WaitRequest { container_id: id.into(), exec_id: exec.into() };
        let (mut waiting, wait) = (self.client.tasks(), self.client.request(wait));
        let mut waiting = tokio::spawn(async move { waiting.wait(wait).await }); // before the start: nothing is missed
        if start {
            start_task(self.client, id, exec).await?;
        }
        let (told, mut input) = mpsc::channel(2);
        let _open = told.clone(); // without input there is no end of it
        if let Some(fifo) = self.input.clone() {
            let keys = self.tty.then(|| self.keys.clone());
            // Not waited for: it may sit in a read that never returns.
            std::thread::spawn(move || copy_input(&fifo, keys, &told));
        }
        if self.tty {
            self.resize().await;
        }
        loop {
            tokio::select! {
                answer = &mut waiting => {
                    let answer = answer.context("waiting for the process")?.map_err(said)?;
                    return Ok(Ended::Exit(i32::try_from(answer.into_inner().exit_status).unwrap_or(255)));
                }
                Some(input) = input.recv() => match input {
                    Input::Detach => {
                        drop(raw);
                        eprintln!("read escape sequence");
                        return Ok(Ended::Left(0));
                    }
                    Input::End if self.close => self.close_input().await,
                    Input::End => {}
                },
                Some(kind) = signals.recv() => {
                    if kind == SignalKind::window_change() {
                        if self.tty {
                            self.resize().await;
                        }
                    } else if self.proxy {
                        self.forward(kind).await;
                    } else {
                        drop(raw);
                        return Ok(Ended::Left(128 + kind.as_raw_value()));
                    }
                }
            }
        }
    }

    async fn close_input(&self) {
        let close = tasks::CloseIoRequest { container_id: self.id.into(), exec_id: self.exec.into(), stdin: true };
        let _ = self.client.tasks().close_io(self.client.request(close)).await; // the process may have ended first
    }

    async fn forward(&self, signal: SignalKind) {
        let signal = signal.as_raw_value().unsigned_abs();
        let (container_id, exec_id) = (self.id.into(), self.exec.into());
        let kill = tasks::KillRequest { container_id, exec_id, signal, all: false };
        let _ = self.client.tasks().kill(self.client.request(kill)).await; // it may have ended this moment
    }

    async fn resize(&self) {
        if let Some((width, height)) = window() {
            let (container_id, exec_id) = (self.id.into(), self.exec.into());
            let resize = tasks::ResizePtyRequest { container_id, exec_id, width, height };
            let _ = self.client.tasks().resize_pty(self.client.request(resize)).await; // it may have ended this moment
        }
    }
}

/// Every signal that can be passed on, and the change of our window.
fn signals() -> Result<mpsc::Receiver<SignalKind>> {
    let (got, signals) = mpsc::channel(16);
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::alarm(),
        SignalKind::window_change(),
    ] {
        let mut signal = signal(kind).context("watching signals")?;
        let got = got.clone();
        tokio::spawn(async move { while signal.recv().await.is_some() && got.send(kind).await.is_ok() {} });
    }
    Ok(signals)
}

fn copy_input(fifo: &std::path::Path, mut keys: Option<DetachKeys>, told: &mpsc::Sender<Input>) {
    if let Ok(mut fifo) = File::options().write(true).open(fifo) {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            let (passed, left) = match &mut keys {
                Some(keys) => keys.take(&buffer[..length]),
                None => (buffer[..length].to_vec(), false),
            };
            if fifo.write_all(&passed).is_err() {
                break;
            }
            if left {
                let _ = told.blocking_send(Input::Detach); // nobody listens any more: the process has ended
                return;
            }
        }
    }
    let _ = told.blocking_send(Input::End);
}

/// Shows a container's log from here on.
pub struct Output {
    ended: oneshot::Receiver<()>,
}

impl Output {
    /// Begins before the container is started, or at the end of what it has said; its logger must be running.
    pub fn begin(log: &std::path::Path) -> Result<Output> {
        let part = Part { tail: Some(0), ..Part::default() };
        let reader = Reader::open(log, part).with_context(|| format!("opening {}", log.display()))?;
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = reader.follow(&mut Own); // nobody reads our output any more: the container does not mind
            let _ = end.send(());
        });
        Ok(Output { ended })
    }

    /// After the process has ended: returns when all that it said is shown.
    pub async fn finish(self) {
        let _ = tokio::time::timeout(DRAIN, self.ended).await; // given up
    }
}
