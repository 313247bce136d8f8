//! The end of a container, as its shim tells it.
//!
//! A shim's events come in order, its word about memory before that of the exit, and those that it could not send while
//! the daemon was away come when it is back. So they are what we go by; what was missed shows when the rows are compared
//! with the tasks at start.

use std::collections::HashSet;
use std::sync::Arc;

use tare_proto::any;
use tare_proto::containerd::events::{TaskExit, TaskOom};
use tare_proto::containerd::types::Envelope;
use tare_proto::runtime::v1 as pb;

use crate::cri::record::Record;
use crate::cri::rows::{Container, ContainerState};
use crate::cri::{Cri, NAMESPACE, events, namespace, nanoseconds, now};
use crate::error::{Error, Result};
use crate::event::Subscription;
use crate::names::Id;

/// How a container ended whose end nobody saw. Source: containerd `internal/cri/server/events.go`.
pub const UNKNOWN: (i32, &str) = (255, "Unknown");

/// How something ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

impl Cri {
    /// What is subscribed to. Subscribe before the rows are compared with the tasks, and nothing is missed.
    pub(in crate::cri) fn subscribe(&self) -> Result<Subscription> {
        let of = |topic: &str| format!("namespace=={NAMESPACE},topic==\"{topic}\"");
        self.parts.events.subscribe(&[of("/tasks/exit"), of("/tasks/oom")])
    }

    /// Follows the events for as long as the daemon lives.
    pub(in crate::cri) async fn follow(self, mut told: Subscription) {
        let mut starved = HashSet::new();
        loop {
            match told.next().await {
                Ok(event) => self.take(&event, &mut starved),
                // Some were missed: what they were about is looked up.
                Err(error) => {
                    tracing::warn!("{error}");
                    match self.subscribe() {
                        Ok(again) => told = again,
                        Err(error) => return tracing::error!("{error}"),
                    }
                    if let Err(error) = self.compare().await {
                        tracing::error!("{error}");
                    }
                }
            }
        }
    }

    fn take(&self, envelope: &Arc<Envelope>, starved: &mut HashSet<String>) {
        let Some(event) = &envelope.event else { return };
        if let Ok(Some(oom)) = any::unpack::<TaskOom>(event, "containerd.events.TaskOOM") {
            starved.insert(oom.container_id);
            return;
        }
        let Ok(Some(exit)) = any::unpack::<TaskExit>(event, "containerd.events.TaskExit") else { return };
        if exit.id != exit.container_id {
            return; // of an exec
        }
        let Some(container) = self.containers.get(&exit.container_id) else { return };
        let oom = starved.remove(&exit.container_id);
        let at = exit.exited_at.as_ref().map_or_else(now, nanoseconds);
        let end = End { code: exit.exit_status.cast_signed(), at };
        let cri = self.clone();
        tokio::spawn(async move {
            if let Err(error) = cri.ended(&container, end, oom).await {
                tracing::error!(container = container.id, "{error}");
            }
        });
    }

    /// Writes down the end, then has the task deleted: if we are killed between, the task is still there to ask.
    pub(in crate::cri) async fn ended(&self, container: &Arc<Record<Container>>, end: End, oom: bool) -> Result<()> {
        let _turn = container.turn.write().await; // a start that is under way writes its part first
        if container.row().state() != ContainerState::Running {
            return Ok(());
        }
        container
            .change(move |row| {
                (row.exit_code, row.finished_at, row.pid, row.oom) = (end.code, end.at, 0, oom);
                if oom {
                    row.reason = "OOMKilled".into();
                } else if end.code == UNKNOWN.0 && end.at == 0 {
                    row.reason = UNKNOWN.1.into();
                    row.finished_at = now();
                }
                row.set_state(ContainerState::Exited);
                Ok(())
            })
            .await?;
        events::container(self, container, pb::ContainerEventType::ContainerStoppedEvent);
        self.delete_task(&container.id).await
    }

    /// Deletes the task of a container, if it has one.
    pub(in crate::cri) async fn delete_task(&self, id: &str) -> Result<()> {
        let id = Id::parse(id)?;
        self.parts.tasks.let_be_buried(&namespace(), &id).await;
        match self.parts.tasks.delete(&namespace(), &id).await {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
