//! Keeps tasks as the labels of their containers want them: what `nerdctl run --restart` leaves to the daemon.
//!
//! | label `containerd.io/restart.…` | meaning |
//! |---|---|
//! | `status` | `running` or `stopped`: without it a container is left alone |
//! | `policy` | `always` (also without the label), `on-failure[:MOST]`, `unless-stopped`, `no` |
//! | `count` | how often it was started again; kept here |
//! | `explicitly-stopped` | `true`: `unless-stopped` leaves it stopped |
//! | `loguri` | where the output of the new task goes |
//!
//! Source: containerd's `core/runtime/restart`, `plugins/restart`.

use std::time::{Duration, SystemTime};

use tare_proto::containerd::events::ContainerUpdate;
use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::task::v3 as shim;
use tare_proto::containerd::v1::types::Status;
use tokio::task::JoinSet;

use crate::containers::Containers;
use crate::error::{Error, Result};
use crate::event::Exchange;
use crate::names::{Id, Labels, Namespace};
use crate::namespaces::Namespaces;
use crate::snapshot::Snapshots;
use crate::task::{Creation, Tasks};

/// What `policy` may say.
pub const POLICIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

const STATUS: &str = "containerd.io/restart.status";
const POLICY: &str = "containerd.io/restart.policy";
const COUNT: &str = "containerd.io/restart.count";
const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const LOG_URI: &str = "containerd.io/restart.loguri";

const SIGKILL: u32 = 9;

#[derive(Clone)]
pub struct Restarts {
    pub namespaces: Namespaces,
    pub containers: Containers,
    pub snapshots: Snapshots,
    pub tasks: Tasks,
    pub events: Exchange,
    /// From one look at everything to the next.
    pub interval: Duration,
}

/// How a task is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Running,
    Paused,
    Created,
    Stopped { exit: u32 },
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Start,
    Stop,
}

impl Restarts {
    /// Looks after everything again and again, until the future is dropped.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::error!("restarting: {error}");
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    async fn look(&self) -> Result<()> {
        let own = self.clone();
        let labelled = move || -> Result<Vec<(Namespace, Container)>> {
            let mut found = Vec::new();
            for record in own.namespaces.list()? {
                let namespace = Namespace::parse(&record.name)?;
                let containers = own.containers.list(&namespace, &[format!("labels.{STATUS:?}")])?;
                found.extend(containers.into_iter().map(|container| (namespace.clone(), container)));
            }
            Ok(found)
        };
        let labelled = blocking(labelled).await?;
        let mut changes = JoinSet::new();
        for (namespace, container) in labelled {
            let own = self.clone();
            changes.spawn(async move {
                let id = container.id.clone();
                if let Err(error) = own.tend(&namespace, container).await {
                    tracing::error!(%namespace, id, "restarting: {error}");
                }
            });
        }
        changes.join_all().await;
        Ok(())
    }

    async fn tend(&self, namespace: &Namespace, container: Container) -> Result<()> {
        let id = Id::parse(&container.id)?;
        let found = self.find(namespace, &id).await?;
        if found == Found::None && is_new(&container, self.interval) {
            return Ok(()); // whoever made it is about to make its task
        }
        match wanted(&container.labels, found)? {
            None => Ok(()),
            Some(Change::Stop) => self.stop(namespace, &id).await,
            Some(Change::Start) => {
                let container = self.count(namespace, container).await?;
                self.stop(namespace, &id).await?;
                self.start(namespace, &id, container).await
            }
        }
    }

    async fn find(&self, namespace: &Namespace, id: &Id) -> Result<Found> {
        let Ok(task) = self.tasks.get(namespace, id) else {
            // One that is just being made is somebody's who knows why.
            return Ok(if self.tasks.has(namespace, id) { Found::Created } else { Found::None });
        };
        Ok(match task.state("").await {
            Ok(state) => match state.status() {
                Status::Running => Found::Running,
                Status::Paused | Status::Pausing => Found::Paused,
                Status::Created => Found::Created,
                Status::Stopped => Found::Stopped { exit: state.exit_status },
                Status::Unknown => Found::None,
            },
            Err(Error::NotFound(_)) => Found::None,
            Err(error) => return Err(error),
        })
    }

    /// Kills and removes the container's task, if it has one.
    async fn stop(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        let Ok(task) = self.tasks.get(namespace, id) else { return Ok(()) };
        let kill = shim::KillRequest { id: id.to_string(), signal: SIGKILL, all: true, ..Default::default() };
        match task.call::<()>("Kill", &kill).await {
            Ok(()) => _ = task.wait("").await?,
            Err(Error::NotFound(_)) => {} // it has ended
            Err(error) => return Err(error),
        }
        self.tasks.delete(namespace, id).await.map(|_| ())
    }

    async fn count(&self, namespace: &Namespace, container: Container) -> Result<Container> {
        let count = container.labels.get(COUNT).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        let labels = Labels::from([(COUNT.to_owned(), (count + 1).to_string())]);
        let (own, of) = (self.clone(), namespace.clone());
        let changed = blocking(move || {
            own.containers.update(&of, &Container { labels, ..container }, &[format!("labels.{COUNT}")])
        })
        .await?;
        let event = ContainerUpdate {
            id: changed.id.clone(),
            image: changed.image.clone(),
            labels: changed.labels.clone(),
            snapshot_key: changed.snapshot_key.clone(),
        };
        self.events.tell(namespace, "/containers/update", &event)?;
        Ok(changed)
    }

    async fn start(&self, namespace: &Namespace, id: &Id, container: Container) -> Result<()> {
        let log = container.labels.get(LOG_URI).cloned().unwrap_or_default();
        let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
        let rootfs = if key.is_empty() {
            Vec::new()
        } else {
            let (own, of) = (self.clone(), namespace.clone());
            blocking(move || own.snapshots.mounts(&of, &snapshotter, &key)).await?
        };
        let creation = Creation::of(container, "", None)?;
        let terminal = !log.is_empty() && wants_terminal(&creation.spec);
        let stderr = if terminal { String::new() } else { log.clone() };
        self.tasks.create(namespace, id, Creation { rootfs, terminal, stdout: log, stderr, ..creation }).await?;
        let request = shim::StartRequest { id: id.to_string(), exec_id: String::new() };
        self.tasks.get(namespace, id)?.call::<shim::StartResponse>("Start", &request).await.map(|_| ())
    }
}

/// Whether a container was made since the last look.
fn is_new(container: &Container, interval: Duration) -> bool {
    let made = container.created_at.and_then(|at| SystemTime::try_from(at).ok());
    made.is_some_and(|at| at.elapsed().is_ok_and(|age| age < interval))
}

/// What has to be done for the labels to be true. Whoever made a task is about to start it.
///
/// # Errors
/// `InvalidArgument`: a label means nothing.
fn wanted(labels: &Labels, found: Found) -> Result<Option<Change>> {
    match (labels.get(STATUS).map(String::as_str), found) {
        (Some("stopped"), Found::Running | Found::Paused | Found::Created) => Ok(Some(Change::Stop)),
        (Some("running"), Found::Stopped { .. } | Found::None) => Ok(again(labels, found)?.then_some(Change::Start)),
        _ => Ok(None),
    }
}

/// Whether the policy wants the task started again.
fn again(labels: &Labels, found: Found) -> Result<bool> {
    let label = |name: &str| labels.get(name).map_or("", String::as_str);
    let wrong = || Error::InvalidArgument(format!("label {POLICY}={:?} is no policy", label(POLICY)));
    let (policy, most) = match label(POLICY).split_once(':') {
        Some((policy, most)) => (policy, Some(most.parse::<u64>().map_err(|_| wrong())?)),
        None => (label(POLICY), None),
    };
    match (policy, most) {
        ("" | "always", None) => Ok(true),
        ("no", None) => Ok(false),
        ("unless-stopped", None) => {
            Ok(!matches!(label(EXPLICITLY_STOPPED), "true" | "1" | "t" | "T" | "TRUE" | "True"))
        }
        ("on-failure", most) => {
            let failed = matches!(found, Found::Stopped { exit } if exit != 0);
            let count = label(COUNT).parse::<u64>().unwrap_or(0);
            Ok(failed && most.is_none_or(|most| most == 0 || count < most))
        }
        _ => Err(wrong()),
    }
}

fn wants_terminal(spec: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(spec)
        .is_ok_and(|spec| spec.pointer("/process/terminal") == Some(&serde_json::Value::Bool(true)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let lost = |error| Error::Internal(format!("restarting: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_restarts_what_it_says_and_nothing_else() {
        let failed = Found::Stopped { exit: 3 };
        let ended = Found::Stopped { exit: 0 };
        for (labels, found, change) in [
            ("status=running", ended, Some(Change::Start)),
            ("status=running", Found::None, Some(Change::Start)),
            ("status=running", Found::Running, None),
            ("status=running", Found::Paused, None),
            ("status=running", Found::Created, None),
            ("status=running policy=no", failed, None),
            ("status=running policy=always", ended, Some(Change::Start)),
            ("status=running policy=on-failure", ended, None),
            ("status=running policy=on-failure", Found::None, None),
            ("status=running policy=on-failure", failed, Some(Change::Start)),
            ("status=running policy=on-failure:2 count=1", failed, Some(Change::Start)),
            ("status=running policy=on-failure:2 count=2", failed, None),
            ("status=running policy=unless-stopped", failed, Some(Change::Start)),
            ("status=running policy=unless-stopped explicitly-stopped=true", failed, None),
            ("status=running policy=unless-stopped explicitly-stopped=false", failed, Some(Change::Start)),
            ("status=stopped", Found::Running, Some(Change::Stop)),
            ("status=stopped", Found::None, None),
            ("status=stopped", ended, None),
            ("policy=always", Found::None, None),
        ] {
            let labels = labels
                .split(' ')
                .filter_map(|label| label.split_once('='))
                .map(|(name, value)| (format!("containerd.io/restart.{name}"), value.to_owned()))
                .collect();
            assert_eq!(wanted(&labels, found).unwrap(), change, "{labels:?} {found:?}");
        }
        for policy in ["sometimes", "always:3", "on-failure:many"] {
            let labels = [(STATUS, "running"), (POLICY, policy)].map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert!(matches!(wanted(&labels.into(), failed), Err(Error::InvalidArgument(_))), "{policy}");
        }
    }
}
