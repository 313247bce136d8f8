//! CRI v1: the kubelet's face, over the same stores and tasks as containerd's API.
//!
//! ```text
//! runtime, image     CRI's two services: each method one call
//! pod, container     what they do; spec: the runtime specification of a container
//! rows, record       what is remembered, on disk and here
//! recover            what a daemon that was killed left
//! ```
//!
//! Everything of it lives in containerd's namespace `k8s.io`, so that `ctr -n k8s.io` shows what the kubelet runs.
//!
//! Source: kubernetes/cri-api `pkg/apis/runtime/v1/api.proto`; what is observable beyond it follows containerd's CRI.

pub mod config;
mod container;
mod events;
pub mod exec;
mod fifo;
mod folders;
mod image;
mod network;
mod pod;
mod process;
mod record;
mod recover;
mod rows;
mod runtime;
mod spec;
mod stats;
mod status;
pub mod streaming;
mod sync;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer};
use tokio::sync::broadcast;
use tokio_stream::Stream;
use tonic::Status;
use tonic::service::Routes;

use crate::cni;
use crate::error::{Error, Result};
use crate::names::Namespace;
use crate::service::Services;
pub use config::Config;
use folders::Folders;
use record::{Record, Table};
use spec::Host;

/// As the kubelet's own limit.
const LARGEST_MESSAGE: usize = 16 << 20;

/// Where all of it lives.
const NAMESPACE: &str = "k8s.io";

/// What a stream of answers is.
type Answers<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// CRI's two services. Clones share everything.
#[derive(Clone)]
pub struct Cri {
    parts: Services,
    config: Arc<Config>,
    folders: Folders,
    host: Arc<Host>,
    pods: Arc<Table<rows::Pod>>,
    containers: Arc<Table<rows::Container>>,
    network: cni::Network,
    catalog: image::Catalog,
    counted: image::Counted,
    /// Known once it listens.
    streams: Arc<OnceLock<streaming::Server>>,
    samples: stats::Samples,
    told: broadcast::Sender<pb::ContainerEventResponse>,
}

impl Cri {
    /// # Errors
    /// The database is damaged.
    pub fn new(parts: Services, config: Config) -> Result<Cri> {
        Ok(Cri {
            folders: Folders::new(&parts.root, &parts.state),
            host: Arc::new(Host::look()),
            pods: Arc::new(Table::open(&parts.store, &namespace())?),
            containers: Arc::new(Table::open(&parts.store, &namespace())?),
            network: cni::Network::new(config.cni.clone(), &parts.root.join("cni")),
            catalog: image::Catalog::default(),
            counted: image::Counted::default(),
            streams: Arc::default(),
            samples: stats::Samples::default(),
            told: broadcast::Sender::new(events::BACKLOG),
            config: Arc::new(config),
            parts,
        })
    }

    pub fn add_to(&self, routes: Routes) -> Routes {
        let runtime = RuntimeServiceServer::new(self.clone());
        let images = ImageServiceServer::new(self.clone());
        routes
            .add_service(runtime.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
            .add_service(images.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
    }

    /// The containers of a pod, whatever their state.
    fn containers_of(&self, pod: &str) -> Vec<Arc<Record<rows::Container>>> {
        self.containers.all().into_iter().filter(|container| container.row().pod == pod).collect()
    }
}

fn namespace() -> Namespace {
    static PARSED: LazyLock<Namespace> =
        LazyLock::new(|| Namespace::parse(NAMESPACE).expect("its letters and its dot are those of a namespace"));
    PARSED.clone()
}

/// 64 hexadecimal digits, as containerd's: a kubelet shows the first thirteen.
fn new_id() -> String {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        // With less than 256 bytes asked for, and the pool ready since boot, it neither fails nor stops half way.
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn nanoseconds(at: &Timestamp) -> i64 {
    at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanos.into())
}

/// A field that the request cannot do without.
fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::InvalidArgument(format!("{name} must be set")))
}

/// Whether labels have all that a selector names.
fn selected(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
