//! The table of tasks: made, found again, deleted, and buried when their shim dies.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use tare_proto::containerd::events::{TaskDelete, TaskExit};
use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::containerd::types::Mount;

use super::bundle::{Bundle, Bundles};
use super::shim::{Shim, found, recall, with_root};
use super::start::{self, Caller, Daemon};
use super::table::Table;
use super::task::{Exit, Task};
use crate::error::{Doing as _, Error};
use crate::event::Exchange;
use crate::layer::{self, Removals};
use crate::names::{Id, Namespace};
use crate::sandbox::Sandboxes;

const SHUTDOWN: Duration = Duration::from_secs(3);

/// Clones share the table.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    daemon: Daemon,
    bundles: Bundles,
    /// Where the runtime keeps its state, unless a client says otherwise.
    runtime_root: PathBuf,
    events: Exchange,
    table: Table<Task>,
    sandboxes: Sandboxes,
}

/// What a task is made of.
pub struct Creation {
    /// `io.containerd.tare.v2`, or the shim's absolute path.
    pub runtime: String,
    pub options: Option<Any>,
    /// config.json.
    pub spec: Vec<u8>,
    /// Whose shim is to serve it too, if there is such a sandbox.
    pub sandbox: Option<Id>,
    pub rootfs: Vec<Mount>,
    pub terminal: bool,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// What it goes on from, if it does not begin.
    pub checkpoint: Option<Checkpoint>,
}

/// CRIU's images of a task.
pub enum Checkpoint {
    /// A client's.
    Folder(PathBuf),
    /// As content has them.
    Archive(File),
}

impl Checkpoint {
    /// The folder that they are in; an archive is unpacked into the task's own, which goes with it.
    async fn folder(self, bundle: &Bundle) -> Result<PathBuf, Error> {
        let archive = match self {
            Checkpoint::Folder(path) => return Ok(path),
            Checkpoint::Archive(archive) => archive,
        };
        let path = bundle.path.join("images");
        let folder = path.clone();
        let unpack = move || {
            DirBuilder::new().mode(0o700).create(&folder).doing(|| format!("making {}", folder.display()))?;
            layer::apply(archive, &folder, Removals::Remove).map(drop)
        };
        tokio::task::spawn_blocking(unpack).await.map_err(|error| Error::Internal(error.to_string()))??;
        Ok(path)
    }
}

impl Creation {
    /// For a container as its record says, without a root file system or anything to read and write.
    ///
    /// # Errors
    /// The record has no specification, or its sandbox has no such name.
    pub fn of(container: Container, runtime_path: &str, options: Option<Any>) -> Result<Creation, Error> {
        let runtime = container.runtime.unwrap_or_default();
        let unset = |field: &str| Error::FailedPrecondition(format!("container {:?} has no {field}", container.id));
        Ok(Creation {
            runtime: if runtime_path.is_empty() { runtime.name } else { runtime_path.to_owned() },
            options: options.or(runtime.options),
            spec: container.spec.ok_or_else(|| unset("spec"))?.value,
            sandbox: Some(container.sandbox).filter(|id| !id.is_empty()).map(|id| Id::parse(&id)).transpose()?,
            rootfs: Vec::new(),
            terminal: false,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            checkpoint: None,
        })
    }
}

impl Tasks {
    pub fn new(
        daemon: Daemon,
        bundles: Bundles,
        runtime_root: PathBuf,
        events: Exchange,
        sandboxes: Sandboxes,
    ) -> Tasks {
        let table = Table::default();
        Tasks { inner: Arc::new(Inner { daemon, bundles, runtime_root, events, table, sandboxes }) }
    }

    /// Makes a task: its program is ready, and waits for start. Returns its pid.
    ///
    /// # Errors
    /// There is one of that name, there is no such runtime, or the shim refused. Then nothing is left of it.
    pub async fn create(&self, namespace: &Namespace, id: &Id, creation: Creation) -> Result<u32, Error> {
        let binary = start::binary(&creation.runtime)?;
        self.let_be_buried(namespace, id).await;
        let name = self.inner.table.take(namespace, id, "task")?;
        let bundle = self.inner.bundles.create(namespace, id, Some(&creation.spec))?;
        let (task, pid) = match self.launch(namespace, id, &binary, &bundle, creation).await {
            Ok(made) => made,
            Err(error) => return Err(self.undo(namespace, id, &binary, bundle, error).await),
        };
        name.give(task.clone());
        self.watch(task);
        Ok(pid)
    }

    /// # Errors
    /// There is none.
    pub fn get(&self, namespace: &Namespace, id: &Id) -> Result<Arc<Task>, Error> {
        self.inner.table.get(namespace, id).ok_or_else(|| Error::NotFound(format!("task {id}")))
    }

    /// The tasks of a namespace, by id.
    pub fn list(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        self.inner.table.list(namespace)
    }

    /// Whether this container has a task, or is getting one.
    pub fn has(&self, namespace: &Namespace, id: &Id) -> bool {
        self.inner.table.has(namespace, id)
    }

    /// Waits until a task whose shim just died is out of the way: lists no longer show it.
    pub async fn let_be_buried(&self, namespace: &Namespace, id: &Id) {
        if let Ok(task) = self.get(namespace, id)
            && task.shim.is_lost()
        {
            let _ = task.burial().await; // how it ended was told to whoever waited for that
        }
    }

    /// Removes a task that has ended, with its shim and its bundle.
    ///
    /// # Errors
    /// There is none, or it has not ended.
    pub async fn delete(&self, namespace: &Namespace, id: &Id) -> Result<Exit, Error> {
        let task = self.get(namespace, id)?;
        let request = pb::DeleteRequest { id: id.to_string(), exec_id: String::new() };
        let exit = match task.call::<pb::DeleteResponse>("Delete", &request).await {
            Ok(response) => Exit::from(response),
            Err(Error::Unavailable(_)) => return task.burial().await,
            // The shim lives and has no such task: a delete that was cut short. What is ours goes.
            Err(error @ Error::NotFound(_)) => {
                self.dismiss(&task, Exit::unknown()).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        self.dismiss(&task, exit.clone()).await?;
        Ok(exit)
    }

    /// Finds the tasks that an earlier daemon left, and buries those whose shim is gone.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub async fn recover(&self) -> Result<(), Error> {
        let mut loads = tokio::task::JoinSet::new();
        for (namespace, id, bundle) in self.inner.bundles.found()? {
            let tasks = self.clone();
            loads.spawn(async move { tasks.load(namespace, id, bundle).await });
        }
        loads.join_all().await;
        Ok(())
    }

    async fn launch(
        &self,
        namespace: &Namespace,
        id: &Id,
        binary: &std::path::Path,
        bundle: &Bundle,
        creation: Creation,
    ) -> Result<(Arc<Task>, u32), Error> {
        let inner = &self.inner;
        let options = with_root(creation.options, &inner.runtime_root)?;
        let sandbox = creation.sandbox.and_then(|sandbox| inner.sandboxes.shim(namespace, &sandbox));
        let shim = match sandbox {
            Some(sandbox) => Shim::join(&sandbox, namespace, id, bundle).await?,
            None => Shim::launch(&inner.daemon, namespace, id, binary, bundle, &options).await?,
        };
        let task = Task::of(shim);
        let checkpoint = match creation.checkpoint {
            Some(checkpoint) => checkpoint.folder(bundle).await?.display().to_string(),
            None => String::new(),
        };
        let request = pb::CreateTaskRequest {
            id: id.to_string(),
            bundle: bundle.path.display().to_string(),
            rootfs: creation.rootfs,
            terminal: creation.terminal,
            stdin: creation.stdin,
            stdout: creation.stdout,
            stderr: creation.stderr,
            checkpoint,
            parent_checkpoint: String::new(),
            options: Some(options),
        };
        match task.call::<pb::CreateTaskResponse>("Create", &request).await {
            Ok(response) => Ok((Arc::new(task), response.pid)),
            Err(error) => {
                shut_down(&task).await;
                Err(error.under("failed to create shim task"))
            }
        }
    }

    /// Leaves nothing of a task that could not be made. Returns the error, with what else went wrong.
    async fn undo(
        &self,
        namespace: &Namespace,
        id: &Id,
        binary: &std::path::Path,
        bundle: Bundle,
        error: Error,
    ) -> Error {
        let caller = Caller { daemon: &self.inner.daemon, binary, namespace, id, bundle: &bundle.path };
        if bundle.path.join("bootstrap.json").exists()
            && let Err(left) = caller.delete().await
        {
            tracing::warn!(%namespace, %id, "{left}");
        }
        if let Err(left) = bundle.remove() {
            tracing::error!(%namespace, %id, "{left}");
        }
        error
    }

    async fn load(&self, namespace: Namespace, id: Id, bundle: Bundle) {
        let (binary, path) = (recall(&bundle.path), bundle.path.clone());
        let connect = async {
            let task = Task::of(Shim::load(&namespace, &id, &bundle).await?);
            task.state("").await?;
            Ok(task)
        };
        match found(connect).await {
            Ok(task) => {
                let task = Arc::new(task);
                self.inner.table.put(&namespace, &id, task.clone());
                self.watch(task);
            }
            Err(error) => {
                tracing::warn!(%namespace, %id, "task lost while the daemon was away: {error}");
                let caller = Caller {
                    daemon: &self.inner.daemon,
                    binary: &binary,
                    namespace: &namespace,
                    id: &id,
                    bundle: &path,
                };
                self.clean(&caller, &bundle).await;
            }
        }
    }

    /// Buries the task when its shim goes before the task was deleted.
    fn watch(&self, task: Arc<Task>) {
        let tasks = self.clone();
        tokio::spawn(async move {
            task.shim.lost().await;
            if !tasks.is_current(&task) {
                return;
            }
            tracing::warn!(namespace = %task.namespace, id = %task.id, "lost the shim");
            let exit = tasks.clean(&task.shim.caller(&tasks.inner.daemon), &task.shim.bundle).await;
            tasks.forget(&task);
            task.buried.send_replace(Some(exit));
        });
    }

    /// What is left of a task whose shim is gone is removed, and its end told, since nobody else will.
    async fn clean(&self, caller: &Caller<'_>, bundle: &Bundle) -> Exit {
        let exit = caller.delete().await.map_or_else(
            |error| {
                tracing::warn!(namespace = %caller.namespace, id = %caller.id, "{error}");
                Exit::unknown()
            },
            Exit::from,
        );
        if let Err(error) = bundle.remove() {
            tracing::error!(namespace = %caller.namespace, id = %caller.id, "{error}");
        }
        let (id, at) = (caller.id.to_string(), Some(exit.at));
        let exited = TaskExit {
            container_id: id.clone(),
            id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: at,
        };
        let deleted =
            TaskDelete { container_id: id, pid: exit.pid, exit_status: exit.status, exited_at: at, id: String::new() };
        let told = self
            .inner
            .events
            .tell(caller.namespace, "/tasks/exit", &exited)
            .and_then(|()| self.inner.events.tell(caller.namespace, "/tasks/delete", &deleted));
        if let Err(error) = told {
            tracing::error!("{error}");
        }
        exit
    }

    /// Ends the shim of a task that was deleted, if it has no other, and removes what is ours.
    async fn dismiss(&self, task: &Arc<Task>, exit: Exit) -> Result<(), Error> {
        self.forget(task);
        shut_down(task).await;
        task.buried.send_replace(Some(exit)); // for whoever asks just now how it ended
        task.shim.bundle.remove()
    }

    fn is_current(&self, task: &Arc<Task>) -> bool {
        self.inner.table.is_current(&task.namespace, &task.id, task)
    }

    fn forget(&self, task: &Arc<Task>) {
        self.inner.table.forget(&task.namespace, &task.id, task);
    }
}

/// Asks the shim to end. It may refuse: others of its group may live.
async fn shut_down(task: &Task) {
    let request = pb::ShutdownRequest { id: task.id.to_string(), now: false };
    match tokio::time::timeout(SHUTDOWN, task.call::<()>("Shutdown", &request)).await {
        Ok(Ok(()) | Err(Error::Unavailable(_))) => {} // the connection may close before the answer
        Ok(Err(error)) => tracing::warn!(id = %task.id, "shutting down the shim: {error}"),
        Err(_) => tracing::warn!(id = %task.id, "shutting down the shim: no answer within {} s", SHUTDOWN.as_secs()),
    }
}
