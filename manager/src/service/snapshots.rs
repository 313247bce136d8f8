use tare_proto::containerd::events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use tare_proto::containerd::services::snapshots::v1 as pb;
use tare_proto::containerd::types::Mount;
use tonic::{Request, Response, Status};

use super::{Answers, Services, in_pieces, lease, mask, namespace, required};
use crate::filter::Filter;
use crate::names::{Labels, LeaseId, Namespace, update_labels};
use crate::snapshot::REFERENCE;

#[tonic::async_trait]
impl pb::snapshots_server::Snapshots for Services {
    type ListStream = Answers<pb::ListSnapshotsResponse>;

    async fn prepare(
        &self,
        request: Request<pb::PrepareSnapshotRequest>,
    ) -> Result<Response<pb::PrepareSnapshotResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let pb::PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let mounts = self.made(namespace, lease, New { snapshotter, key, parent, labels, view: false }).await?;
        Ok(Response::new(pb::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<pb::ViewSnapshotRequest>,
    ) -> Result<Response<pb::ViewSnapshotResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let pb::ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let mounts = self.made(namespace, lease, New { snapshotter, key, parent, labels, view: true }).await?;
        Ok(Response::new(pb::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<pb::MountsRequest>) -> Result<Response<pb::MountsResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let mounts = self
            .blocking(move |services| services.snapshots.mounts(&namespace, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(pb::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<pb::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let pb::CommitSnapshotRequest { snapshotter, name, key, labels, parent } = request.into_inner();
        let event = SnapshotCommit { key: key.clone(), name: name.clone(), snapshotter: snapshotter.clone() };
        let of = namespace.clone();
        self.blocking(move |services| {
            services.hold(&of, lease.as_ref(), &format!("snapshots/{snapshotter}"), &name)?;
            let parent = Some(parent.as_str()).filter(|parent| !parent.is_empty());
            services.snapshots.commit(&of, &snapshotter, &name, &key, &labels, parent)
        })
        .await?;
        self.tell(&namespace, "/snapshot/commit", &event);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<pb::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let event = SnapshotRemove { key: request.key.clone(), snapshotter: request.snapshotter.clone() };
        let of = namespace.clone();
        self.blocking(move |services| services.snapshots.remove(&of, &request.snapshotter, &request.key)).await?;
        self.tell(&namespace, "/snapshot/remove", &event);
        self.collector.after(false).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<pb::StatSnapshotRequest>,
    ) -> Result<Response<pb::StatSnapshotResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let info = self
            .blocking(move |services| services.snapshots.info(&namespace, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(pb::StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateSnapshotRequest>,
    ) -> Result<Response<pb::UpdateSnapshotResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (given, mask) = (required(request.info, "info")?, mask(request.update_mask));
        let info = self
            .blocking(move |services| {
                let change = |labels: &mut Labels| update_labels(labels, &given.labels, &mask);
                services.snapshots.update(&namespace, &request.snapshotter, &given.name, change)
            })
            .await?;
        Ok(Response::new(pb::UpdateSnapshotResponse { info: Some(info) }))
    }

    async fn list(&self, request: Request<pb::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let list = self
            .blocking(move |services| {
                let filter = Filter::parse(&request.filters)?;
                let mut list = services.snapshots.list(&namespace, &request.snapshotter)?;
                list.retain(|info| filter.matches(|path| field(info, path)));
                Ok(list)
            })
            .await?;
        Ok(Response::new(in_pieces(list, |info| pb::ListSnapshotsResponse { info })))
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Result<Response<pb::UsageResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (size, inodes) = self
            .blocking(move |services| services.snapshots.usage(&namespace, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(pb::UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<pb::CleanupRequest>) -> Result<Response<()>, Status> {
        let (namespace, snapshotter) = (namespace(&request)?, request.into_inner().snapshotter);
        self.blocking(move |services| services.snapshots.cleanup(&namespace, &snapshotter)).await?;
        Ok(Response::new(()))
    }
}

struct New {
    snapshotter: String,
    key: String,
    parent: String,
    labels: Labels,
    view: bool,
}

impl Services {
    async fn made(&self, namespace: Namespace, lease: Option<LeaseId>, new: New) -> Result<Vec<Mount>, Status> {
        let event =
            SnapshotPrepare { key: new.key.clone(), parent: new.parent.clone(), snapshotter: new.snapshotter.clone() };
        let of = namespace.clone();
        let mounts = self
            .blocking(move |services| {
                let New { snapshotter, key, parent, labels, view } = new;
                let kind = format!("snapshots/{snapshotter}");
                for name in [Some(&key), labels.get(REFERENCE)].into_iter().flatten() {
                    services.hold(&of, lease.as_ref(), &kind, name)?;
                }
                services.snapshots.prepare(&of, &snapshotter, &key, &parent, &labels, view)
            })
            .await?;
        self.tell(&namespace, "/snapshot/prepare", &event);
        Ok(mounts)
    }
}

fn field(info: &pb::Info, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "kind" => Some(info.kind().as_str_name().to_lowercase()),
        [first] if first == "name" => Some(info.name.clone()),
        [first] if first == "parent" => Some(info.parent.clone()),
        [first, rest @ ..] if first == "labels" => info.labels.get(&rest.join(".")).cloned(),
        _ => None,
    }
}
