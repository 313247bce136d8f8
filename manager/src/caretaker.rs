//! What nobody else is there to do when a container ends or goes: those that were run with `--rm` are removed, and the
//! folder and the network of one that is gone. Clients may die, and the daemon may: what was missed is made up for at the next start.

use std::fs;
use std::path::{Path, PathBuf};

use tare_proto::any;
use tare_proto::containerd::events::{ContainerDelete, SnapshotRemove, TaskExit};
use tare_proto::containerd::types::Envelope;
use tare_proto::containerd::v1::types::Status;

use crate::collector::Collector;
use crate::containers::Containers;
use crate::error::{Doing as _, Error, Result};
use crate::event::{Exchange, Subscription};
use crate::names::{Id, Namespace};
use crate::namespaces::Namespaces;
use crate::networks::Networks;
use crate::snapshot::Snapshots;
use crate::task::Tasks;

/// The type under which clients learn where containers' folders are.
pub const PLUGIN: &str = "io.tare.containers.v1";
/// A container with this label is removed when it has ended.
pub const REMOVE: &str = "tare.dev/rm";
/// In the root, a folder for each namespace, and in that one for each container.
pub const FOLDERS: &str = "containers";

const EXIT: &str = "/tasks/exit";
const DELETE: &str = "/containers/delete";

#[derive(Clone)]
pub struct Caretaker {
    pub folders: PathBuf,
    pub namespaces: Namespaces,
    pub containers: Containers,
    pub snapshots: Snapshots,
    pub tasks: Tasks,
    pub events: Exchange,
    pub collector: Collector,
    pub networks: Networks,
}

impl Caretaker {
    /// Everything that happens from now on is seen by [`Caretaker::run`].
    ///
    /// # Errors
    /// None: the filters are good.
    pub fn watch(&self) -> Result<Subscription> {
        self.events.subscribe(&[format!("topic=={EXIT:?}")])
    }

    /// Makes up for what happened before, then does what has to be done as it happens. The tasks that an earlier daemon
    /// left must have been found. Ends with the daemon.
    ///
    /// # Errors
    /// None that a daemon could do something about.
    pub async fn run(self, mut events: Subscription) -> Result<()> {
        let mut at_start = true;
        loop {
            if let Err(error) = self.catch_up(at_start).await {
                tracing::warn!("looking after containers: {error}");
            }
            at_start = false;
            while let Ok(event) = events.next().await {
                let this = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = this.on(&event).await {
                        tracing::warn!(namespace = event.namespace, "looking after a container: {error}");
                    }
                });
            }
            events = self.watch()?; // we fell behind and missed something
        }
    }

    async fn on(&self, event: &Envelope) -> Result<()> {
        let namespace = Namespace::parse(&event.namespace)?;
        let Some(payload) = &event.event else { return Ok(()) };
        let unreadable = |error| Error::InvalidArgument(format!("reading an event: {error}"));
        if let Some(exit) = any::unpack::<TaskExit>(payload, "containerd.events.TaskExit").map_err(unreadable)? {
            let first = exit.id == exit.container_id;
            return if first { self.ended(&namespace, &Id::parse(&exit.container_id)?).await } else { Ok(()) };
        }
        Ok(())
    }

    /// Takes away what belongs to a container: whoever removes one has this done before its name can be used again.
    ///
    /// # Errors
    /// Its network or its folder cannot be removed; the next start tries again.
    pub async fn clear(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        self.clear_folder(&self.folders.join(namespace.as_str()).join(id.as_str())).await
    }

    /// Removes a container that has ended, if it asked for that.
    async fn ended(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        let container = match self.containers.get(namespace, id) {
            Err(Error::NotFound(_)) => return Ok(()), // somebody was faster
            found => found?,
        };
        if !container.labels.contains_key(REMOVE) {
            return Ok(());
        }
        match self.tasks.delete(namespace, id).await {
            Ok(_) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.clear(namespace, id).await?;
        if !container.snapshot_key.is_empty() {
            let (snapshotter, key) = (container.snapshotter, container.snapshot_key);
            match self.snapshots.remove(namespace, &snapshotter, &key) {
                Err(Error::NotFound(_)) => {} // the collector was faster
                removed => {
                    removed?;
                    self.events.tell(namespace, "/snapshot/remove", &SnapshotRemove { key, snapshotter })?;
                }
            }
        }
        self.containers.delete(namespace, id)?;
        self.events.tell(namespace, DELETE, &ContainerDelete { id: id.to_string() })?;
        self.collector.after(false).await
    }

    /// Removes folders whose container is gone. Before anybody is served: a client makes the folder before the container.
    pub async fn sweep(&self) {
        let swept = async {
            for (namespace, folder) in found(&self.folders)? {
                let Ok(of) = Namespace::parse(&namespace) else { continue };
                for (id, folder) in found(&folder)? {
                    let Ok(id) = Id::parse(&id) else { continue };
                    if matches!(self.containers.get(&of, &id), Err(Error::NotFound(_))) {
                        self.clear_folder(&folder).await?;
                    }
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!("looking after containers: {error}");
        }
    }

    /// Removes containers that ended unseen.
    async fn catch_up(&self, at_start: bool) -> Result<()> {
        for namespace in self.namespaces.list()? {
            let namespace = Namespace::parse(&namespace.name)?;
            for container in self.containers.list(&namespace, &[format!("labels.\"{REMOVE}\"==true")])? {
                let id = Id::parse(&container.id)?;
                if self.is_over(&namespace, &id, at_start).await {
                    self.ended(&namespace, &id).await?;
                }
            }
        }
        Ok(())
    }

    /// Without a task it is over if the daemon was away: otherwise a client may be about to make one.
    async fn is_over(&self, namespace: &Namespace, id: &Id, at_start: bool) -> bool {
        match self.tasks.get(namespace, id) {
            Ok(task) => task.state("").await.is_ok_and(|state| state.status() == Status::Stopped),
            Err(_) => at_start && !self.tasks.has(namespace, id),
        }
    }

    /// What belongs to a container that is gone: its network, then its folder, which says what that is.
    async fn clear_folder(&self, folder: &Path) -> Result<()> {
        self.networks.detach_folder(folder).await?;
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing(|| format!("removing {}", folder.display())),
        }
    }
}

/// The folders in a folder, by name; none if there is no such folder.
fn found(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(|| format!("reading {}", folder.display()))?,
    };
    let named = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    Ok(entries.flatten().filter_map(named).collect())
}
