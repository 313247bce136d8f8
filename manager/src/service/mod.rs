//! containerd's gRPC services: each file one service, each method a translation onto one call of a domain module.

mod checkpoint;
mod containers;
mod content;
mod diff;
mod events;
mod health;
mod images;
mod introspection;
mod leases;
mod mounts;
mod namespaces;
mod networks;
mod sandbox;
mod snapshots;
mod status;
mod streaming;
mod tasks;
mod transfer;
mod version;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Name;
use tokio::sync::RwLock;
use tokio_stream::Stream;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::caretaker::{self, Caretaker};
use crate::collector::Collector;
use crate::config::Proxy;
use crate::containers::Containers;
use crate::content::Content;
use crate::error::{Error, Result};
use crate::event::Exchange;
use crate::gc;
use crate::images::Images;
use crate::leases::Leases;
use crate::names::{LeaseId, Namespace};
use crate::namespaces::Namespaces;
use crate::networks::Networks;
use crate::restart::Restarts;
use crate::sandbox::{Records, Sandboxes};
use crate::snapshot::Snapshots;
use crate::store::Store;
use crate::streaming::Streams;
use crate::task::Tasks;
use crate::transfer::Transfers;

/// As containerd's: a list of thousands fits, a blob comes in pieces.
const LARGEST_MESSAGE: usize = 16 << 20;

/// What a stream of answers is.
type Answers<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// The parts that services translate to. Clones share them.
#[derive(Clone)]
pub struct Services {
    pub store: Store,
    pub content: Content,
    pub snapshots: Snapshots,
    pub images: Images,
    pub containers: Containers,
    pub leases: Leases,
    pub namespaces: Namespaces,
    pub networks: Networks,
    pub sandboxes: Sandboxes,
    pub sandbox_records: Records,
    pub tasks: Tasks,
    pub events: Exchange,
    pub collector: Collector,
    pub streams: Streams,
    pub transfers: Transfers,
    pub root: PathBuf,
    pub state: PathBuf,
    /// What else serves a part, as the configuration has it.
    pub proxies: Arc<BTreeMap<String, Proxy>>,
    /// This daemon's, for as long as its root lives.
    pub uuid: String,
    /// Read-locked by whatever must not be cut short.
    pub busy: Arc<RwLock<()>>,
}

macro_rules! serve {
    ($routes:ident, $services:ident: $($package:ident :: $server:ident :: $name:ident),+ $(,)?) => {$(
        let server = tare_proto::containerd::services::$package::v1::$server::$name::new($services.clone());
        let $routes = $routes.add_service(
            server.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE),
        );
    )+};
}

impl Services {
    /// Every service, under its name on the wire.
    pub fn routes(&self) -> Routes {
        let routes = Routes::new(health::server());
        serve!(routes, self:
            containers::containers_server::ContainersServer,
            content::content_server::ContentServer,
            diff::diff_server::DiffServer,
            events::events_server::EventsServer,
            images::images_server::ImagesServer,
            introspection::introspection_server::IntrospectionServer,
            leases::leases_server::LeasesServer,
            mounts::mounts_server::MountsServer,
            namespaces::namespaces_server::NamespacesServer,
            sandbox::controller_server::ControllerServer,
            sandbox::store_server::StoreServer,
            snapshots::snapshots_server::SnapshotsServer,
            streaming::streaming_server::StreamingServer,
            tasks::tasks_server::TasksServer,
            transfer::transfer_server::TransferServer,
            version::version_server::VersionServer,
        );
        let networks = tare_proto::tare::network::v1::networks_server::NetworksServer::new(self.clone());
        routes.add_service(networks)
    }

    /// What keeps tasks as the labels of their containers want them.
    pub fn restarts(&self, interval: Duration) -> Restarts {
        Restarts {
            namespaces: self.namespaces.clone(),
            containers: self.containers.clone(),
            snapshots: self.snapshots.clone(),
            tasks: self.tasks.clone(),
            events: self.events.clone(),
            interval,
        }
    }

    /// What removes what nobody else is there to remove.
    pub fn caretaker(&self) -> Caretaker {
        Caretaker {
            folders: self.root.join(caretaker::FOLDERS),
            namespaces: self.namespaces.clone(),
            containers: self.containers.clone(),
            snapshots: self.snapshots.clone(),
            tasks: self.tasks.clone(),
            events: self.events.clone(),
            collector: self.collector.clone(),
            networks: self.networks.clone(),
        }
    }

    /// Runs what waits for the disk where it keeps nobody else waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Services) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let services = self.clone();
        tokio::task::spawn_blocking(move || work(&services)).await.map_err(lost)?.map_err(Status::from)
    }

    /// Runs to its end even if the client goes away or the daemon is to end: half of it must not stay.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let busy = self.busy.clone().read_owned().await;
        let work = async move {
            let _busy = busy;
            work.await
        };
        tokio::spawn(work).await.map_err(lost)?.map_err(Status::from)
    }

    /// Returns when everything that must not be cut short has come to its end. Nothing of the kind begins afterwards.
    pub async fn settle(&self) {
        self.transfers.end();
        std::mem::forget(self.busy.write().await);
    }

    /// Tells of a change that was made. That it was made is not undone if it cannot be told.
    pub(crate) fn tell<E: prost::Message + Name>(&self, namespace: &Namespace, topic: &str, event: &E) {
        if let Err(error) = self.events.tell(namespace, topic, event) {
            tracing::error!(%namespace, "{error}");
        }
    }

    /// Makes the request's lease, if it names one, hold what is about to be made.
    fn hold(&self, namespace: &Namespace, lease: Option<&LeaseId>, kind: &str, name: &str) -> Result<()> {
        let Some(lease) = lease else { return Ok(()) };
        self.leases.get(namespace, lease)?;
        gc::hold(&self.store, namespace, lease.as_str(), &[(kind, name.to_owned())])
    }
}

fn lost(error: tokio::task::JoinError) -> Status {
    Status::internal(format!("a request ended early: {error}"))
}

/// The request's namespace.
fn namespace<T>(request: &Request<T>) -> Result<Namespace> {
    let required = || Error::FailedPrecondition("namespace is required".into());
    Namespace::parse(header(request, "containerd-namespace")?.ok_or_else(required)?)
}

/// The lease that holds what the request makes or looks up.
fn lease<T>(request: &Request<T>) -> Result<Option<LeaseId>> {
    header(request, "containerd-lease")?.map(LeaseId::parse).transpose()
}

fn header<'r, T>(request: &'r Request<T>, name: &str) -> Result<Option<&'r str>> {
    let Some(value) = request.metadata().get(name) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Error::InvalidArgument(format!("header {name} is not text")))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn mask(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// A field that the request cannot do without.
fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::InvalidArgument(format!("{name} must be set")))
}

/// A list in pieces that fit into messages.
fn in_pieces<T: Send + 'static, M: Send + 'static>(list: Vec<T>, message: fn(Vec<T>) -> M) -> Answers<M> {
    const PIECE: usize = 100;
    let mut list = list.into_iter();
    Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let piece: Vec<T> = list.by_ref().take(PIECE).collect();
        if piece.is_empty() { None } else { Some(Ok(message(piece))) }
    })))
}
