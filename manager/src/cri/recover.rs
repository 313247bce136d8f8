//! What an earlier daemon left: its rows, compared with what there is.

use std::sync::Arc;

use tare_proto::containerd::task::v3 as shim;
use tare_proto::containerd::v1::types::Status;

use super::container::{End, UNKNOWN, is_running};
use super::record::{Record, off_thread};
use super::rows::{Container, ContainerState, Pod, PodState};
use super::{Cri, folders, namespace, nanoseconds, now};
use crate::error::{Error, Result};
use crate::names::Id;

impl Cri {
    /// Takes up what was left, finishes what was begun, and follows what happens from now on.
    ///
    /// # Errors
    /// The database is damaged, or a folder cannot be read.
    pub async fn recover(&self) -> Result<()> {
        let told = self.subscribe()?;
        let (network, pods) = (self.network.clone(), self.pods.all());
        let pods = pods.iter().filter(|pod| !pod.row().netns.is_empty()).map(|pod| pod.id.clone()).collect();
        off_thread(move || network.wait_for_orphans(&pods)).await?;
        for pod in self.pods.all() {
            self.take_up(&pod).await;
        }
        self.compare().await?;
        let cri = self.clone();
        off_thread(move || cri.sweep()).await?;
        let cri = self.clone();
        tokio::spawn(async move {
            // Nobody waits for it: a plugin may take its time, and pods that are made meanwhile are not touched.
            let known = || Ok(cri.pods.all().into_iter().map(|pod| pod.id.clone()).collect());
            if let Err(error) = cri.network.collect(known).await {
                tracing::warn!("collecting networks that no pod has: {error}");
            }
        });
        tokio::spawn(self.clone().follow(told));
        tokio::spawn(self.clone().follow_images(self.subscribe_to_images()?));
        Ok(())
    }

    async fn take_up(&self, pod: &Arc<Record<Pod>>) {
        let outcome = match pod.row().state() {
            // Its maker got no answer and never will.
            PodState::Making => self.unmake_pod(pod).await,
            PodState::Ready if self.lives(pod).await => {
                self.watch_pod(pod.clone());
                Ok(())
            }
            PodState::Ready => {
                let ended = pod.change(|row| {
                    row.set_state(PodState::NotReady);
                    row.pid = 0;
                    Ok(())
                });
                ended.await.map(|_| ())
            }
            PodState::NotReady => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(pod = pod.id, "taking up a pod: {error}");
        }
    }

    async fn lives(&self, pod: &Arc<Record<Pod>>) -> bool {
        let Ok(id) = Id::parse(&pod.id) else { return false };
        let status = self.parts.sandboxes.status(&namespace(), &id, false).await;
        status.is_ok_and(|status| status.state == "SANDBOX_READY")
    }

    /// Makes each container's row say what its task says.
    pub(super) async fn compare(&self) -> Result<()> {
        let mut all = tokio::task::JoinSet::new();
        for container in self.containers.all() {
            let cri = self.clone();
            all.spawn(async move {
                if let Err(error) = cri.compare_one(&container).await {
                    tracing::error!(container = container.id, "taking up a container: {error}");
                }
            });
        }
        all.join_all().await;
        Ok(())
    }

    async fn compare_one(&self, container: &Arc<Record<Container>>) -> Result<()> {
        match container.row().state() {
            ContainerState::Making | ContainerState::Removing => self.remove_traces_of(container).await,
            ContainerState::Created => self.compare_created(container).await,
            ContainerState::Running => match self.state_of(container).await {
                Ok(state) if state.status() == Status::Stopped => {
                    let at = state.exited_at.as_ref().map_or_else(now, nanoseconds);
                    self.ended(container, End { code: state.exit_status.cast_signed(), at }, false).await
                }
                Ok(_) => Ok(()),
                Err(Error::NotFound(_)) => self.ended(container, End { code: UNKNOWN.0, at: 0 }, false).await,
                Err(error) => Err(error),
            },
            ContainerState::Exited => self.delete_task(&container.id).await,
        }
    }

    /// Its start may have been cut short: then it runs, or its task is there and does not.
    async fn compare_created(&self, container: &Arc<Record<Container>>) -> Result<()> {
        let state = match self.state_of(container).await {
            Ok(state) => state,
            Err(Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if state.status() == Status::Created {
            return self.delete_task(&container.id).await;
        }
        is_running(container, state.pid).await?;
        if state.status() == Status::Stopped {
            let at = state.exited_at.as_ref().map_or_else(now, nanoseconds);
            self.ended(container, End { code: state.exit_status.cast_signed(), at }, false).await?;
        }
        Ok(())
    }

    async fn state_of(&self, container: &Arc<Record<Container>>) -> Result<shim::StateResponse> {
        self.parts.tasks.get(&namespace(), &Id::parse(&container.id)?)?.state("").await
    }

    /// Removes folders that no row names.
    fn sweep(&self) -> Result<()> {
        folders::remove(&self.folders.look())?;
        for id in self.folders.found("sandboxes")? {
            if self.pods.get(&id).is_none() {
                self.folders.of_pod(&id).iter().try_for_each(|place| folders::remove(place))?;
            }
        }
        for id in self.folders.found("containers")? {
            if self.containers.get(&id).is_none() {
                self.folders.of_container(&id).iter().try_for_each(|place| folders::remove(place))?;
            }
        }
        Ok(())
    }
}
