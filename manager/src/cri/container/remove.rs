//! RemoveContainer: what is left of a container, step by step, each of which may have been made before.

use std::sync::Arc;

use tare_proto::runtime::v1 as pb;

use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Container, ContainerState};
use crate::cri::{Cri, NAMESPACE, events, folders, namespace};
use crate::error::{Error, Result};
use crate::snapshot::{OVERLAY, Row, Snapshots};
use crate::store::{Rows, kind};

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
        container.mark(|row| row.set_state(ContainerState::Removing));
        self.remove_traces_of(container).await?;
        events::container(self, container, pb::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// The task; all rows at once; then what they named. What a daemon that is killed then leaves without a row is swept at
    /// the next start.
    pub(in crate::cri) async fn remove_traces_of(&self, container: &Arc<Record<Container>>) -> Result<()> {
        self.delete_task(&container.id).await?;
        let row = container.row();
        let images = row.config().mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some());
        let keys: Vec<String> = images.map(|(number, _)| format!("{}-image-{number}", row.id)).collect();
        let keys = [keys, vec![row.id.clone()]].concat();
        let rows = move |rows: &mut Rows<'_>| {
            rows.remove(kind::CONTAINER, NAMESPACE, &row.id)?;
            let removed = keys.iter().map(|key| Snapshots::remove_row(rows, &namespace(), OVERLAY, key));
            Ok(removed.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<Row>>())
        };
        let removed = self.containers.remove_with(&container.id, rows).await?;
        let (cri, id) = (self.clone(), container.id.clone());
        off_thread(move || {
            folders::unmount(&cri.folders.look().join(&id))?;
            for place in cri.folders.of_container(&id) {
                folders::remove(&place)?; // with what is mounted in it
            }
            removed.iter().try_for_each(|row| cri.parts.snapshots.discard(&namespace(), OVERLAY, row))
        })
        .await?;
        self.parts.collector.after(false).await
    }
}
