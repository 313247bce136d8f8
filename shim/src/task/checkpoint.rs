//! `Checkpoint`, and the other way round: a `Create` with a checkpoint, whose `Start` is the runtime's `restore`.
//!
//! Source: containerd's runc shim, `process/init.go`, `process/init_state.go`; runc-checkpoint(8), runc-restore(8).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tare_proto::any;
use tare_proto::containerd::events::TaskCheckpointed;
use tare_proto::containerd::runc::v1::CheckpointOptions;
use tare_proto::containerd::task::v3::{CheckpointTaskRequest, CreateTaskRequest};
use tare_proto::ttrpc::Error;

use super::process::Process;
use super::{Container, Supervisor, failed, invalid, precondition};
use crate::bundle::Config;
use crate::log;
use crate::options::Options;
use crate::phase::Phase;
use crate::runtime::{self, Runtime, Streams};
use crate::stdio::{Asked, ConsoleSocket, Stdio};

const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// What `Create` was told of a checkpoint, until `Start` restores it.
pub(super) struct Restore {
    images: PathBuf,
    parent: String,
    work: PathBuf,
    no_pivot_root: bool,
}

impl Supervisor {
    pub(super) async fn checkpoint(self: &Rc<Self>, request: CheckpointTaskRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if !matches!(container.init.phase(), Phase::Running | Phase::Paused) {
            let word = container.init.phase().word();
            return Err(precondition(format!("cannot checkpoint a {word} container: failed precondition")));
        }
        let options = options(&request)?;
        let (images, work) = places(&container, &request, &options);
        let words = words(&container.id, &options, &images, &work);
        let said = container.runtime.run(&self.children, &words, Streams::null()).await;
        if let Err(error) = said {
            let dump = container.bundle.join("criu-dump.log");
            if let Err(error) = fs::copy(work.join("dump.log"), &dump) {
                log::warn(&format!("keeping CRIU's log as {}: {error}", dump.display()));
            }
            return Err(failed(format!("OCI runtime checkpoint failed: {error} (CRIU's log: {})", dump.display())));
        }
        if !options.work_path.is_empty() {
            let _ = fs::remove_dir_all(&work); // of use only for who looks into a failure
        }
        let event = TaskCheckpointed { container_id: request.id, checkpoint: request.path };
        self.events.tell("/tasks/checkpointed", "TaskCheckpointed", &event);
        Ok(())
    }

    /// A container that nothing runs of yet.
    pub(super) fn to_be_restored(
        &self,
        request: &CreateTaskRequest,
        asked: Asked,
        options: &Options,
        config: &Config,
        runtime: Runtime,
    ) -> Rc<Container> {
        let bundle = PathBuf::from(&request.bundle);
        let work = match options.criu_work_path.as_os_str() {
            given if given.is_empty() => bundle.join("work"),
            given => given.into(),
        };
        let restore = Restore {
            images: request.checkpoint.clone().into(),
            parent: request.parent_checkpoint.clone(),
            work,
            no_pivot_root: options.no_pivot_root,
        };
        let init = Process::new(String::new(), asked, Vec::new());
        Container::new(&request.id, bundle, runtime, options, config, init, Some(restore))
    }

    /// Runs the runtime's `restore`; from then on it is a container as any.
    pub(super) async fn restore(&self, container: &Rc<Container>, restore: &Restore) -> Result<(), Error> {
        let owner = self.owner(&container.id, container.io_owner);
        let asked = &container.init.asked;
        let console = if asked.terminal { Some(ConsoleSocket::listen(&self.sockets, self.number())?) } else { None };
        let (mut stdio, streams) = match &console {
            Some(_) => (Stdio::default(), Streams::null()),
            None => Stdio::open(asked, &owner).await.map_err(failed)?,
        };
        let pid_file = container.bundle.join("init.pid");
        let mut words: Vec<OsString> = vec!["restore".into(), "--detach".into()];
        let mut add = |flag: &str, value: &OsStr| words.extend([flag.into(), value.to_owned()]);
        add("--image-path", restore.images.as_os_str());
        add("--work-path", restore.work.as_os_str());
        add("--bundle", container.bundle.as_os_str());
        add("--pid-file", pid_file.as_os_str());
        if !restore.parent.is_empty() {
            add("--parent-path", restore.parent.as_ref());
        }
        if let Some(console) = &console {
            add("--console-socket", console.path.as_os_str());
        }
        words.extend(restore.no_pivot_root.then(|| "--no-pivot".into()));
        words.push(container.id.clone().into());
        let _hold = self.children.hold();
        let said = container.runtime.run(&self.children, &words, streams).await;
        if let Err(error) = said {
            stdio.finish().await;
            return Err(failed(format!("OCI runtime restore failed: {error}")));
        }
        let child = runtime::read_pid_file(&self.children, &pid_file)?;
        if let Some(console) = console {
            stdio = Stdio::attach(asked, &owner, console.receive().await?).await.map_err(failed)?;
        }
        container.init.set_stdio(stdio);
        container.adopt(child);
        Ok(())
    }
}

fn options(request: &CheckpointTaskRequest) -> Result<CheckpointOptions, Error> {
    let Some(options) = request.options.as_ref().filter(|any| !any.type_url.is_empty()) else {
        return Ok(CheckpointOptions::default());
    };
    let read = any::unpack(options, OPTIONS).map_err(|error| invalid(format!("options: {error}")))?;
    read.ok_or_else(|| invalid(format!("options of type {}: {OPTIONS} is known", options.type_url)))
}

/// Where the images go, and CRIU's own files: the request's path counts before that of the options.
fn places(container: &Container, request: &CheckpointTaskRequest, options: &CheckpointOptions) -> (PathBuf, PathBuf) {
    let or = |given: &str, other: PathBuf| if given.is_empty() { other } else { PathBuf::from(given) };
    let images = or(&request.path, or(&options.image_path, container.bundle.join("checkpoint")));
    (images, or(&options.work_path, container.bundle.join("work")))
}

fn words(id: &str, options: &CheckpointOptions, images: &Path, work: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["checkpoint".into()];
    words.extend(["--image-path".into(), images.into(), "--work-path".into(), work.into()]);
    for (flag, is_set) in [
        ("--leave-running", !options.exit),
        ("--tcp-established", options.open_tcp),
        ("--ext-unix-sk", options.external_unix_sockets),
        ("--shell-job", options.terminal),
        ("--file-locks", options.file_locks),
    ] {
        words.extend(is_set.then(|| flag.into()));
    }
    for namespace in &options.empty_namespaces {
        words.extend(["--empty-ns".into(), namespace.into()]);
    }
    if !options.cgroups_mode.is_empty() {
        words.extend(["--manage-cgroups-mode".into(), options.cgroups_mode.clone().into()]);
    }
    words.push(id.into());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_runtime_s_flags() {
        let said = |options: CheckpointOptions| {
            let words = words("one", &options, Path::new("/i"), Path::new("/w"));
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(said(CheckpointOptions::default()), "checkpoint --image-path /i --work-path /w --leave-running one");
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "soft".into(),
            ..CheckpointOptions::default()
        };
        assert_eq!(
            said(all),
            "checkpoint --image-path /i --work-path /w --tcp-established --ext-unix-sk --shell-job --file-locks \
             --empty-ns network --manage-cgroups-mode soft one"
        );
    }
}
