//! RemoveContainer: what is left of a container, step by step, each of which may have been made before.

use std::sync::Arc;

use tare_proto::runtime::v1 as pb;

use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Container, ContainerState};
use crate::cri::{Cri, events, folders, namespace};
use crate::error::{Error, Result};
use crate::names::Id;
use crate::snapshot::OVERLAY;

impl Cri {
    /// Kills it if it runs. One that nobody knows is removed.
    pub(in crate::cri) async fn remove_container(&self, id: &str) -> Result<()> {
        match self.containers.get(id) {
            Some(container) => self.remove_one(&container).await,
            None => Ok(()),
        }
    }

    pub(in crate::cri) async fn remove_one(&self, container: &Arc<Record<Container>>) -> Result<()> {
        self.kill_and_wait(container).await?;
        let _turn = container.turn.write().await;
        if self.containers.get(&container.id).is_none() {
            return Ok(()); // by somebody whose turn was before ours
        }
        if container.row().state() == ContainerState::Running {
            return Err(Error::FailedPrecondition(format!("container {:?} was started meanwhile", container.id)));
        }
        container
            .change(|row| {
                row.set_state(ContainerState::Removing);
                Ok(())
            })
            .await?;
        self.remove_traces_of(container).await?;
        events::container(self, container, pb::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Task, record, mounts, snapshots, folders; the row last.
    pub(in crate::cri) async fn remove_traces_of(&self, container: &Arc<Record<Container>>) -> Result<()> {
        self.delete_task(&container.id).await?;
        let (cri, gone) = (self.clone(), container.clone());
        off_thread(move || {
            let id = Id::parse(&gone.id)?;
            there(cri.parts.containers.delete(&namespace(), &id))?;
            folders::unmount(&cri.folders.look().join(&gone.id))?;
            for place in cri.folders.of_container(&gone.id) {
                folders::remove(&place)?; // with what is mounted in it
            }
            for (number, mount) in gone.row().config().mounts.iter().enumerate() {
                if mount.image.is_some() {
                    let key = format!("{}-image-{number}", gone.id);
                    there(cri.parts.snapshots.remove(&namespace(), OVERLAY, &key))?;
                }
            }
            there(cri.parts.snapshots.remove(&namespace(), OVERLAY, &gone.id))
        })
        .await?;
        self.containers.remove(&container.id).await?;
        self.parts.collector.after(false).await?;
        Ok(())
    }
}

/// What is gone is no error.
fn there(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(Error::NotFound(_)) => Ok(()),
        outcome => outcome,
    }
}
