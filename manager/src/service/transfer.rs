use std::collections::HashMap;

use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::transfer::v1 as pb;
use tare_proto::containerd::types::transfer as types;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Services, namespace, required};
use crate::error::{Error, Result as Answer};
use crate::names::Namespace;
use crate::snapshot::OVERLAY;
use crate::streaming::DEPTH;
use crate::transfer::{self, Platform, Progress, Puller};

const REGISTRY: &str = "containerd.types.transfer.OCIRegistry";
const STORE: &str = "containerd.types.transfer.ImageStore";

#[tonic::async_trait]
impl pb::transfer_server::Transfer for Services {
    /// From a registry into the image store. Clients take another pair's refusal as "not here" and do it themselves.
    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let (source, destination) =
            (required(request.source, "source")?, required(request.destination, "destination")?);
        let registry: types::OciRegistry =
            unpack(&source, REGISTRY)?.ok_or_else(|| unsupported(&source, &destination))?;
        let store: types::ImageStore =
            unpack(&destination, STORE)?.ok_or_else(|| unsupported(&source, &destination))?;
        let progress = request.options.map(|options| options.progress_stream).filter(|id| !id.is_empty());
        let pull = plan(registry, store)?;
        let services = self.clone();
        self.finish(async move { services.pull(namespace, pull, progress).await }).await?;
        Ok(Response::new(()))
    }
}

impl Services {
    async fn pull(&self, namespace: Namespace, pull: transfer::Request, progress: Option<String>) -> Answer<()> {
        let puller =
            Puller { store: self.store.clone(), content: self.content.clone(), snapshots: self.snapshots.clone() };
        let (tell, told) = mpsc::channel(DEPTH);
        let showing = match progress {
            Some(id) => tokio::spawn(show(self.streams.take(namespace.as_str(), &id)?.to_client, told)),
            None => tokio::spawn(async move { drop(told) }),
        };
        let pulled = puller.pull(&namespace, &pull, tell).await;
        // The sender is gone with the pull; the client's stream ends when all is shown.
        showing.await.map_err(|error| Error::Internal(format!("showing progress: {error}")))?;
        if pulled.is_err() {
            self.collector.after(false).await?; // what came before the failure
        }
        let pulled = pulled?;
        let (name, labels) = (pulled.image.name, pulled.image.labels);
        if pulled.new {
            self.tell(&namespace, "/images/create", &images::ImageCreate { name, labels });
        } else {
            self.tell(&namespace, "/images/update", &images::ImageUpdate { name, labels });
        }
        Ok(())
    }
}

async fn show(client: mpsc::Sender<Any>, mut told: mpsc::Receiver<Progress>) {
    let mut parents: HashMap<String, String> = HashMap::new();
    while let Some(progress) = told.recv().await {
        if let Some(parent) = &progress.parent {
            parents.insert(progress.name.clone(), parent.clone());
        }
        let shown = types::Progress {
            event: progress.event.into(),
            parents: parents.get(&progress.name).cloned().into_iter().collect(),
            name: progress.name,
            progress: i64::try_from(progress.done).unwrap_or(i64::MAX),
            total: i64::try_from(progress.total).unwrap_or(i64::MAX),
            desc: None,
        };
        if client.send(any::pack("containerd.types.transfer.Progress", &shown)).await.is_err() {
            break; // nobody looks any more; the pull goes on
        }
    }
}

/// What a client asks for, read.
fn plan(registry: types::OciRegistry, store: types::ImageStore) -> Answer<transfer::Request> {
    let resolver = registry.resolver.unwrap_or_default();
    if !resolver.headers.is_empty() {
        return Err(Error::Unimplemented("headers for a registry".into()));
    }
    if !resolver.host_dir.is_empty() {
        return Err(Error::Unimplemented("a folder of hosts for a registry".into()));
    }
    if !store.extra_references.is_empty() {
        return Err(Error::Unimplemented("further references for an image".into()));
    }
    if let Some(other) =
        store.unpacks.iter().find(|unpack| !unpack.snapshotter.is_empty() && unpack.snapshotter != OVERLAY)
    {
        return Err(Error::NotFound(format!("snapshotter {}", other.snapshotter)));
    }
    let asked =
        store.unpacks.iter().find_map(|unpack| unpack.platform.clone()).or_else(|| store.platforms.first().cloned());
    let platform = asked.map_or_else(Platform::own, |asked| Platform {
        os: asked.os,
        architecture: asked.architecture,
        variant: asked.variant,
    });
    let name = if store.name.is_empty() { registry.reference.clone() } else { store.name };
    Ok(transfer::Request {
        reference: registry.reference,
        name,
        labels: store.labels,
        platform,
        scheme: Some(resolver.default_scheme).filter(|scheme| !scheme.is_empty()),
        unpack: !store.unpacks.is_empty(),
    })
}

fn unpack<M: prost::Message + Default>(message: &Any, name: &str) -> Answer<Option<M>> {
    any::unpack(message, name).map_err(|error| Error::InvalidArgument(format!("reading {name}: {error}")))
}

fn unsupported(source: &Any, destination: &Any) -> Error {
    Error::Unimplemented(format!("transfer from {} to {}", any::name(source), any::name(destination)))
}
