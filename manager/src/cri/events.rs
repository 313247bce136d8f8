//! GetContainerEvents: each change of a pod or container, with how the pod stands after it.

use tare_proto::runtime::v1 as pb;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::record::Record;
use super::{Answers, Cri, now, pod, rows};

/// A reader that falls further behind loses its stream, lists everything, and begins anew: the kubelet's way.
pub const BACKLOG: usize = 1000;

pub fn pod(cri: &Cri, pod: &Record<rows::Pod>, kind: pb::ContainerEventType) {
    tell(cri, &pod.id, &pod.id, kind);
}

pub fn container(cri: &Cri, container: &Record<rows::Container>, kind: pb::ContainerEventType) {
    tell(cri, &container.id, &container.row().pod, kind);
}

fn tell(cri: &Cri, id: &str, of: &str, kind: pb::ContainerEventType) {
    if cri.told.receiver_count() == 0 {
        return;
    }
    let _ = cri.told.send(pb::ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        created_at: now(),
        pod_sandbox_status: cri.pods.get(of).map(|record| pod::status(&record.row())),
        containers_statuses: cri.statuses_of(of),
    }); // who listened just left
}

impl Cri {
    pub(super) fn container_events(&self) -> Answers<pb::ContainerEventResponse> {
        let mut told = self.told.subscribe();
        Box::pin(async_stream::stream! {
            loop {
                match told.recv().await {
                    Ok(event) => yield Ok(event),
                    Err(RecvError::Closed) => return,
                    Err(RecvError::Lagged(missed)) => {
                        yield Err(Status::resource_exhausted(format!("reading container events: {missed} were missed")));
                        return;
                    }
                }
            }
        })
    }
}
