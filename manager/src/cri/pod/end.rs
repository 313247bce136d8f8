//! StopPodSandbox and RemovePodSandbox, and undoing a pod whose making failed: one list of steps, each of which may have
//! been done before.

use std::path::Path;
use std::sync::Arc;

use tare_proto::runtime::v1 as pb;

use super::run::attachment;
use crate::cni;
use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Pod, PodState};
use crate::cri::{Cri, events, folders, namespace};
use crate::error::{Error, Result};
use crate::names::Id;

/// What runs in the pod's own process needs no time to end.
const PATIENCE: u32 = 2;

impl Cri {
    /// Ends all that runs in the pod and gives back its network. One that nobody knows is stopped.
    pub(in crate::cri) async fn stop_pod(&self, id: &str) -> Result<()> {
        let Some(pod) = self.pods.get(id) else { return Ok(()) };
        let _turn = pod.turn.write().await;
        self.stop(&pod).await
    }

    async fn stop(&self, pod: &Arc<Record<Pod>>) -> Result<()> {
        for container in self.containers_of(&pod.id) {
            self.kill_and_wait(&container).await?;
        }
        self.dismantle(pod).await?;
        if pod.row().state() != PodState::NotReady || pod.row().pid != 0 {
            pod.change(|row| {
                row.set_state(PodState::NotReady);
                row.pid = 0;
                Ok(())
            })
            .await?;
            events::pod(self, pod, pb::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// One that nobody knows is removed.
    pub(in crate::cri) async fn remove_pod(&self, id: &str) -> Result<()> {
        let Some(pod) = self.pods.get(id) else { return Ok(()) };
        let _turn = pod.turn.write().await;
        if self.pods.get(&pod.id).is_none() {
            return Ok(()); // by somebody whose turn was before ours
        }
        self.stop(&pod).await?;
        for container in self.containers_of(&pod.id) {
            self.remove_one(&container).await?;
        }
        self.remove_traces(&pod).await?;
        events::pod(self, &pod, pb::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Leaves nothing of a pod that could not be made, or whose making was cut short.
    pub(in crate::cri) async fn unmake_pod(&self, pod: &Arc<Record<Pod>>) -> Result<()> {
        self.dismantle(pod).await?;
        self.remove_traces(pod).await
    }

    /// The shim, the network, the namespace, the mount.
    async fn dismantle(&self, pod: &Arc<Record<Pod>>) -> Result<()> {
        let id = Id::parse(&pod.id)?;
        let sandboxes = &self.parts.sandboxes;
        sandboxes.stop(&namespace(), &id, PATIENCE).await?;
        match sandboxes.shutdown(&namespace(), &id).await {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let row = pod.row();
        if !row.netns.is_empty() {
            let there = Path::new(&row.netns).exists().then(|| row.netns.clone().into());
            self.network.remove(&attachment(&row, there)?).await?;
        }
        let (shm, netns) = (self.folders.files(&pod.id).shm, row.netns.clone());
        off_thread(move || {
            if !netns.is_empty() {
                cni::netns::remove(Path::new(&netns))?;
            }
            folders::unmount(&shm)
        })
        .await
    }

    async fn remove_traces(&self, pod: &Arc<Record<Pod>>) -> Result<()> {
        let places = self.folders.of_pod(&pod.id);
        off_thread(move || places.iter().try_for_each(|place| folders::remove(place))).await?;
        self.pods.remove(&pod.id).await
    }
}
