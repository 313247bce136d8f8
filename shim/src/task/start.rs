//! `Start`: of a container that waits, or of an exec.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::rc::Rc;

use tare_proto::containerd::task::v3::{StartRequest, StartResponse};
use tare_proto::ttrpc::Error;

use super::process::Process;
use super::{Container, Supervisor, failed, precondition};
use crate::error::{Doing as _, Failed};
use crate::phase::{Event, Phase};
use crate::runtime::{self, Streams};
use crate::stdio::{ConsoleSocket, Owner, Stdio};

impl Supervisor {
    pub(super) async fn start(self: &Rc<Self>, request: StartRequest) -> Result<StartResponse, Error> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let is_init = process.exec.is_empty();
        if !is_init && !matches!(container.init.phase(), Phase::Created | Phase::Running) {
            let word = container.init.phase().word();
            return Err(precondition(format!("cannot exec in a {word} container: failed precondition")));
        }
        if process.deleting.get() || process.on(Event::StartCalled).is_err() {
            let word = process.phase().word();
            return Err(precondition(format!("cannot start a {word} process: failed precondition")));
        }
        let to_restore = container.restore.as_ref().filter(|_| is_init);
        let started = if let Some(restore) = to_restore {
            self.restore(&container, restore).await
        } else if is_init {
            let words = ["start", &container.id];
            let result = container.runtime.run(&self.children, &words, Streams::null()).await;
            result.map_err(|error| failed(format!("OCI runtime start failed: {error}")))
        } else {
            self.start_exec(&container, &process).await
        };
        let event = if started.is_ok() { Event::Started } else { Event::StartFailed };
        self.happened(&container, &process, event);
        started?;
        if !is_init || to_restore.is_some() {
            self.watch(container.clone(), process.clone());
        }
        Ok(StartResponse { pid: process.pid() })
    }

    async fn start_exec(&self, container: &Container, process: &Process) -> Result<(), Error> {
        let spec = Temporary::write(container.bundle.join(format!("{}.process.json", process.exec)), &process.spec)?;
        let pid_file = Temporary(container.bundle.join(format!("{}.pid", process.exec)));
        let owner = Owner { leaves_children: true, ..self.owner(&container.id, container.io_owner) };
        let console =
            if process.asked.terminal { Some(ConsoleSocket::listen(&self.sockets, self.number())?) } else { None };
        let (mut stdio, streams) = match &console {
            Some(_) => (Stdio::default(), Streams::null()),
            None => Stdio::open(&process.asked, &owner).await.map_err(failed)?,
        };
        let mut words = vec![OsStr::new("exec"), "--process".as_ref(), spec.0.as_ref()];
        if let Some(console) = &console {
            words.extend([OsStr::new("--console-socket"), console.path.as_ref()]);
        }
        words.extend([OsStr::new("--detach"), "--pid-file".as_ref(), pid_file.0.as_ref(), container.id.as_ref()]);
        let _hold = self.children.hold();
        let run = container.runtime.run(&self.children, &words, streams).await;
        if let Err(error) = run {
            stdio.abandon().await;
            return Err(failed(format!("OCI runtime exec failed: {error}")));
        }
        stdio.begin();
        let child = Rc::new(runtime::read_pid_file(&self.children, &pid_file.0)?);
        process.set_child(child.clone());
        if let Some(console) = console {
            let attached = match console.receive().await {
                Ok(master) => Stdio::attach(&process.asked, &owner, master).await.map_err(failed),
                Err(error) => Err(error.into()),
            };
            stdio = match attached {
                Ok(stdio) => stdio,
                Err(error) => {
                    let _ = child.signal(libc::SIGKILL); // it may have ended by itself
                    child.exit().await;
                    return Err(error);
                }
            };
        }
        process.set_stdio(stdio);
        Ok(())
    }
}

/// A file for the runtime, gone when dropped.
struct Temporary(std::path::PathBuf);

impl Temporary {
    fn write(path: std::path::PathBuf, bytes: &[u8]) -> Result<Temporary, Failed> {
        let file = Temporary(path);
        let doing = || format!("writing {}", file.0.display());
        // An environment may hold secrets, and a bundle may be open to the group that a container's root is mapped to.
        let mut opened =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&file.0).doing(doing)?;
        opened.write_all(bytes).doing(doing)?;
        Ok(file)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // the runtime may not have come to writing it
    }
}
