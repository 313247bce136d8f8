//! Containers as CRI shows them.

use std::collections::HashMap;

use serde_json::json;
use tare_proto::runtime::v1 as pb;

use crate::cri::record::off_thread;
use crate::cri::rows::{Container, ContainerState};
use crate::cri::{Cri, config, namespace, selected};
use crate::error::Result;
use crate::names::Id;

impl Cri {
    pub(in crate::cri) fn list_containers(&self, filter: Option<&pb::ContainerFilter>) -> Vec<pb::Container> {
        let rows = self.containers.all().into_iter().map(|container| container.row()).filter(|row| row.is_shown());
        let all = rows.map(|row| listed(&row));
        let Some(filter) = filter else { return all.collect() };
        // Ids may be the beginnings of some, if each is of one alone.
        let id = self.containers.get(&filter.id).map(|container| container.id.clone());
        let pod = self.pods.get(&filter.pod_sandbox_id).map(|pod| pod.id.clone());
        all.filter(|one| filter.id.is_empty() || Some(&one.id) == id.as_ref())
            .filter(|one| filter.pod_sandbox_id.is_empty() || Some(&one.pod_sandbox_id) == pod.as_ref())
            .filter(|one| filter.state.as_ref().is_none_or(|state| state.state == one.state))
            .filter(|one| selected(&filter.label_selector, &one.labels))
            .collect()
    }

    pub(in crate::cri) async fn container_status(
        &self,
        request: &pb::ContainerStatusRequest,
    ) -> Result<pb::ContainerStatusResponse> {
        let row = self.containers.find(&request.container_id)?.row();
        let info = if request.verbose { self.info(&row).await? } else { HashMap::new() };
        Ok(pb::ContainerStatusResponse { status: Some(status(&row)), info })
    }

    /// JSON under the one name that `crictl inspect` and the like look for.
    async fn info(&self, row: &Container) -> Result<HashMap<String, String>> {
        let (cri, id) = (self.clone(), Id::parse(&row.id)?);
        let record = off_thread(move || cri.parts.containers.get(&namespace(), &id)).await?;
        let spec = record.spec.unwrap_or_default().value;
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap_or_default();
        let runtime = record.runtime.unwrap_or_default();
        let info = json!({
            "sandboxID": row.pod,
            "pid": row.pid,
            "removing": row.state() == ContainerState::Removing,
            "snapshotKey": record.snapshot_key,
            "snapshotter": record.snapshotter,
            "runtimeType": runtime.name,
            "runtimeOptions": config::shown(runtime.options.as_ref()),
            "config": row.config(),
            "runtimeSpec": spec,
        });
        Ok(HashMap::from([("info".to_owned(), info.to_string())]))
    }

    pub(in crate::cri) fn statuses_of(&self, pod: &str) -> Vec<pb::ContainerStatus> {
        self.containers_of(pod)
            .iter()
            .map(|container| container.row())
            .filter(|row| row.is_shown())
            .map(|row| status(&row))
            .collect()
    }
}

fn listed(row: &Container) -> pb::Container {
    let config = row.config();
    pb::Container {
        id: row.id.clone(),
        pod_sandbox_id: row.pod.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: row.image.clone(),
        state: state(row).into(),
        created_at: row.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: row.image.clone(),
    }
}

fn status(row: &Container) -> pb::ContainerStatus {
    let config = row.config();
    let mut image = config.image.clone().unwrap_or_default();
    if !row.image_ref.is_empty() {
        image.image.clone_from(&row.image_ref);
    }
    let reason = match (row.reason.as_str(), state(row), row.exit_code) {
        ("", pb::ContainerState::ContainerExited, 0) => "Completed",
        ("", pb::ContainerState::ContainerExited, _) => "Error",
        (reason, _, _) => reason,
    };
    pb::ContainerStatus {
        id: row.id.clone(),
        metadata: config.metadata.clone(),
        state: state(row).into(),
        created_at: row.created_at,
        started_at: row.started_at,
        finished_at: row.finished_at,
        exit_code: row.exit_code,
        image: Some(image),
        image_ref: if row.image_digest.is_empty() { row.image.clone() } else { row.image_digest.clone() },
        reason: reason.into(),
        message: row.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: row.mounts.clone(),
        log_path: row.log_path.clone(),
        // Without limits too: clients read them without looking whether they are there.
        resources: Some(pb::ContainerResources {
            linux: Some(row.resources.clone().unwrap_or_default()),
            windows: None,
        }),
        image_id: row.image.clone(),
        user: row.user.clone().map(|linux| pb::ContainerUser { linux: Some(linux) }),
        stop_signal: cri_signal(row.stop_signal),
    }
}

fn state(row: &Container) -> pb::ContainerState {
    match row.state() {
        ContainerState::Making | ContainerState::Created => pb::ContainerState::ContainerCreated,
        ContainerState::Running => pb::ContainerState::ContainerRunning,
        ContainerState::Exited | ContainerState::Removing => pb::ContainerState::ContainerExited,
    }
}

/// CRI numbers signals by their names' order.
fn cri_signal(number: i32) -> i32 {
    (1..=65)
        .find(|signal| {
            let name = pb::Signal::try_from(*signal).map(|signal| signal.as_str_name());
            name.is_ok_and(|name| super::stop::by_name(name) == Some(number))
        })
        .unwrap_or(0)
}
