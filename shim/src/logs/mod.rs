//! Output in the form of CRI logs: time-stamped lines in one file, reopened and followed while they are written.
//!
//! How a caller uses it: `Task.Create` (or `Exec`) with `stdout` and `stderr` both `cri:///var/log/pods/…/0.log`; with a
//! terminal `stdout` alone. `cri://` without a path keeps nothing and can be followed all the same; `?max_line=N` cuts
//! lines into partial records of N bytes, 16384 if not given. `stdin` stays a fifo. The service `tare.shim.v1.Logs`, on the
//! socket that serves Task, has `Reopen` for when the file was renamed, and `Attach` for fifos that are to get the output
//! from now on: the caller makes them and opens them for reading first; they end when the output does.
//!
//! ```text
//!  container ── pipes ──▶ writer process: a thread a log ──▶ file
//!                            ▲                          └──▶ fifos of those who follow, a bounded ring for each
//!  shim ──── a socket a log ─┘
//! ```
//!
//! The shim itself writes no log: a file system that hangs would hang it with all of the pod's calls. One small process
//! does, for the whole pod, with a thread for each log, so that a hung file stalls the output that goes there and nothing
//! else. It lives on when the daemon or the shim is killed, until the output ends. If it is killed itself, the shim, which
//! holds the pipes, starts another: the container does not notice.
//!
//! Source: Kubernetes CRI log format (`kubelet`'s `pkg/kubelet/kuberuntime/logs`); containerd `internal/cri/io/logger.go`.

mod file;
mod follower;
mod lines;
mod message;
mod place;
mod service;
mod stream;
mod time;
mod writer;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{Gid, Uid, fchown};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::children::Children;
use crate::error::{Doing as _, Failed};
use crate::log;
use crate::reactor::{self, Latch};
use message::{Answer, Order};
pub use place::{Bad, Place};
pub use writer::write;

/// The logs of a pod, from the shim's side.
pub struct Logs {
    namespace: String,
    pod: String,
    children: Rc<Children>,
    /// Where the writer takes new logs from, once there is one.
    writer: RefCell<Option<Rc<OwnedFd>>>,
}

/// The log of one process.
pub struct Log {
    place: Place,
    /// The reading ends of its output and error; the writer has copies, and another one gets copies too.
    pipes: [Option<OwnedFd>; 2],
    socket: RefCell<Rc<OwnedFd>>,
    /// Who waits for an answer of the writer, in order.
    waiting: RefCell<VecDeque<Awaited>>,
    /// All that was written has got through.
    ended: Latch<()>,
}

/// An answer that has not come yet.
type Awaited = Rc<Latch<Result<(), Errno>>>;

impl Logs {
    pub fn new(namespace: &str, pod: &str, children: Rc<Children>) -> Rc<Logs> {
        let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
        Rc::new(Logs { namespace, pod, children, writer: RefCell::default() })
    }

    /// Opens a log; returns it with the writing ends for a process's output and, if asked for, its error.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no writer.
    pub async fn open(
        self: &Rc<Logs>,
        place: Place,
        with_error: bool,
        (uid, gid): (u32, u32),
    ) -> Result<(Rc<Log>, OwnedFd, Option<OwnedFd>), Failed> {
        let doing = || format!("opening the log {}", place.path.display());
        let pipe = || -> Result<_, Failed> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
            if (uid, gid) != (0, 0) {
                fchown(&writer, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).doing(doing)?;
            }
            Ok((reader, writer))
        };
        let (output_reader, output) = pipe()?;
        let (error_reader, error) = if with_error { pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
        let pipes = [Some(output_reader), error_reader];
        let socket = RefCell::new(self.hand_over(&place, &pipes).doing(doing)?);
        let log = Rc::new(Log { place, pipes, socket, waiting: RefCell::default(), ended: Latch::new() });
        let opened = log.expect_answer();
        reactor::spawn(self.clone().listen(log.clone()));
        opened.wait().await.doing(|| format!("opening the log {}", log.place.path.display()))?;
        Ok((log, output, error))
    }

    /// Gives a log to the writer, which is started if it is not there; returns the log's own socket.
    fn hand_over(&self, place: &Place, pipes: &[Option<OwnedFd>; 2]) -> Result<Rc<OwnedFd>, Errno> {
        let (ours, theirs) = pair()?;
        let mut fds = vec![&theirs];
        fds.extend(pipes.iter().flatten());
        let order = Order::Open { place: place.clone(), with_error: pipes[1].is_some() };
        let there = self.writer.borrow().clone();
        if there.is_none_or(|writer| message::send(&*writer, &order.encode(), &fds).is_err()) {
            let writer = self.start_writer()?;
            message::send(&*writer, &order.encode(), &fds)?;
            *self.writer.borrow_mut() = Some(writer);
        }
        Ok(Rc::new(ours))
    }

    fn start_writer(&self) -> Result<Rc<OwnedFd>, Errno> {
        let (ours, theirs) = pair()?;
        let child = writer::start(&self.namespace, &self.pod, theirs)?;
        let child = self.children.adopt(Pid::from_child(&child))?;
        reactor::spawn(async move {
            child.exit().await; // what follows from it is each log's own
        });
        Ok(Rc::new(ours))
    }

    /// Hears what the writer says of one log, to its end. A writer that ends before the log does was killed.
    async fn listen(self: Rc<Logs>, log: Rc<Log>) {
        loop {
            let socket = log.socket.borrow().clone();
            match message::receive_when_ready(&*socket).await {
                Ok(Some((bytes, _))) => match Answer::decode(&bytes) {
                    Some(Answer::Done(result)) => log.answered(result),
                    Some(Answer::Ended) => break,
                    None => {}
                },
                Ok(None) | Err(_) => {
                    let first = log.waiting.borrow().len();
                    for _ in 0..first {
                        log.answered(Err(Errno::PIPE));
                    }
                    match self.hand_over(&log.place, &log.pipes) {
                        Ok(socket) => {
                            drop(log.expect_answer()); // that it was opened again
                            *log.socket.borrow_mut() = socket;
                        }
                        Err(errno) => {
                            log::warn(&format!("the log {} has no writer: {errno}", log.place.path.display()));
                            break;
                        }
                    }
                }
            }
        }
        log.ended.set(());
    }
}

impl Log {
    /// Opens the file anew; returns when output goes there.
    ///
    /// # Errors
    /// It cannot be opened: then output goes where it went.
    pub async fn reopen(&self) -> Result<(), Failed> {
        let doing = || format!("reopening the log {}", self.place.path.display());
        self.ask(&Order::Reopen, &[]).await.doing(doing)
    }

    /// Copies output and error to these as well.
    ///
    /// # Errors
    /// The output has ended.
    pub async fn follow(&self, output: Option<&OwnedFd>, error: Option<&OwnedFd>) -> Result<(), Failed> {
        let fds: Vec<&OwnedFd> = [output, error].into_iter().flatten().collect();
        let order = Order::Follow { output: output.is_some(), error: error.is_some() };
        self.ask(&order, &fds).await.doing(|| "attaching to output".into())
    }

    /// Returns when all that was written has got through.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    async fn ask(&self, order: &Order, fds: &[&OwnedFd]) -> Result<(), Errno> {
        if self.ended.get().is_some() {
            return Err(Errno::PIPE);
        }
        message::send(&**self.socket.borrow(), &order.encode(), fds)?;
        self.expect_answer().wait().await
    }

    fn expect_answer(&self) -> Awaited {
        let latch = Rc::new(Latch::new());
        self.waiting.borrow_mut().push_back(latch.clone());
        latch
    }

    fn answered(&self, result: Result<(), Errno>) {
        if let Some(first) = self.waiting.borrow_mut().pop_front() {
            first.set(result);
        }
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}
