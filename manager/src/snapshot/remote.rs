//! A snapshotter in a program of its own, that speaks containerd's Snapshots service: a proxy plugin.
//!
//! Keys, parents, times and labels are our rows all the same; the other side knows a snapshot as `NAMESPACE/NUMBER/KEY`, as
//! containerd would name it, or, where it had a layer before we asked for it, by the name that it gave.
//!
//! Source: containerd core/snapshots/proxy, core/metadata/snapshot.go.

use std::path::Path;
use std::time::Duration;

use tare_proto::containerd::services::snapshots::v1 as pb;
use tare_proto::containerd::types::Mount;
use tokio::runtime::Handle;
use tonic::Request;
use tonic::transport::Channel;

use crate::error::{Error, Result};
use crate::names::{Labels, Namespace};
use crate::proxy;

/// A snapshotter may fetch a layer's index, but not for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// For threads that may wait.
pub struct Remote {
    pub name: String,
    channel: Channel,
    runtime: Handle,
}

type Client = pb::snapshots_client::SnapshotsClient<Channel>;

impl Remote {
    /// Nothing is asked of it yet: it may be started after us, and again.
    ///
    /// # Panics
    /// Outside of the daemon's threads.
    pub fn new(name: &str, address: &Path) -> Remote {
        Remote { name: name.to_owned(), channel: proxy::channel(address), runtime: Handle::current() }
    }

    fn call<M, A, F>(&self, namespace: &Namespace, message: M, call: impl FnOnce(Client, Request<M>) -> F) -> Result<A>
    where
        F: Future<Output = std::result::Result<A, tonic::Status>>,
    {
        let request = proxy::request(namespace, message)?;
        let answer = call(Client::new(self.channel.clone()), request);
        let late = |_| Error::Unavailable(format!("no answer within {} s", PATIENCE.as_secs()));
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await }).map_err(late);
        answer.and_then(|answer| answer.map_err(proxy::refused)).map_err(|error| error.under(&self.name))
    }

    pub fn prepare(
        &self,
        namespace: &Namespace,
        key: String,
        parent: String,
        labels: Labels,
        view: bool,
    ) -> Result<Vec<Mount>> {
        let snapshotter = self.name.clone();
        if view {
            let message = pb::ViewSnapshotRequest { snapshotter, key, parent, labels };
            return self.call(namespace, message, |mut client, request| async move {
                Ok(client.view(request).await?.into_inner().mounts)
            });
        }
        let message = pb::PrepareSnapshotRequest { snapshotter, key, parent, labels };
        self.call(namespace, message, |mut client, request| async move {
            Ok(client.prepare(request).await?.into_inner().mounts)
        })
    }

    pub fn mounts(&self, namespace: &Namespace, key: String) -> Result<Vec<Mount>> {
        let message = pb::MountsRequest { snapshotter: self.name.clone(), key };
        self.call(namespace, message, |mut client, request| async move {
            Ok(client.mounts(request).await?.into_inner().mounts)
        })
    }

    pub fn commit(&self, namespace: &Namespace, name: String, key: String, labels: Labels) -> Result<()> {
        let message =
            pb::CommitSnapshotRequest { snapshotter: self.name.clone(), name, key, labels, ..Default::default() };
        self.call(namespace, message, |mut client, request| async move { client.commit(request).await.map(|_| ()) })
    }

    pub fn remove(&self, namespace: &Namespace, key: String) -> Result<()> {
        let message = pb::RemoveSnapshotRequest { snapshotter: self.name.clone(), key };
        self.call(namespace, message, |mut client, request| async move { client.remove(request).await.map(|_| ()) })
    }

    pub fn relabel(&self, namespace: &Namespace, name: String, labels: Labels) -> Result<()> {
        let message = pb::UpdateSnapshotRequest {
            snapshotter: self.name.clone(),
            info: Some(pb::Info { name, labels, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["labels".into()] }),
        };
        self.call(namespace, message, |mut client, request| async move { client.update(request).await.map(|_| ()) })
    }

    pub fn usage(&self, namespace: &Namespace, key: String) -> Result<(i64, i64)> {
        let message = pb::UsageRequest { snapshotter: self.name.clone(), key };
        self.call(namespace, message, |mut client, request| async move {
            let usage = client.usage(request).await?.into_inner();
            Ok((usage.size, usage.inodes))
        })
    }

    /// A committed snapshot that stands for `target` on `parent`.
    pub fn find(&self, namespace: &Namespace, target: &str, parent: &str) -> Result<Option<pb::Info>> {
        let filter = format!("labels.\"{}\"=={target},parent=={parent:?}", super::REFERENCE);
        let message = pb::ListSnapshotsRequest { snapshotter: self.name.clone(), filters: vec![filter] };
        let is_it = |info: &pb::Info| {
            let labelled = info.labels.get(super::REFERENCE).is_some_and(|reference| reference == target);
            info.kind() == pb::Kind::Committed && info.parent == parent && labelled // filters are not everywhere heeded
        };
        self.call(namespace, message, |mut client, request| async move {
            let mut list = client.list(request).await?.into_inner();
            while let Some(piece) = list.message().await? {
                if let Some(found) = piece.info.into_iter().find(is_it) {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    pub fn cleanup(&self, namespace: &Namespace) -> Result<()> {
        let message = pb::CleanupRequest { snapshotter: self.name.clone() };
        self.call(namespace, message, |mut client, request| async move { client.cleanup(request).await.map(|_| ()) })
    }
}
