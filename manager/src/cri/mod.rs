//! CRI v1: the kubelet's face, over the same stores and tasks as containerd's API.
//!
//! Everything of it lives in containerd's namespace `k8s.io`, so that `ctr -n k8s.io` shows what the kubelet runs.
//!
//! Source: kubernetes/cri-api `pkg/apis/runtime/v1/api.proto`; what is observable beyond it follows containerd's CRI.

pub mod config;
pub mod exec;
mod image;
pub mod network;
mod runtime;
mod status;

use std::pin::Pin;
use std::sync::Arc;

use tare_proto::runtime::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer};
use tokio_stream::Stream;
use tonic::Status;
use tonic::service::Routes;

use crate::cni::Network;
use crate::service::Services;
pub use config::Config;

/// As the kubelet's own limit.
const LARGEST_MESSAGE: usize = 16 << 20;

/// What a stream of answers is.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// CRI's two services. Clones share everything.
#[derive(Clone)]
pub struct Cri {
    parts: Services,
    config: Arc<Config>,
    network: Network,
    catalog: image::Catalog,
    counted: image::Counted,
}

impl Cri {
    pub fn new(parts: Services, config: Config) -> Cri {
        let network = Network::new(config.cni.clone(), &parts.root.join("cni"));
        Cri { parts, config: Arc::new(config), network, catalog: Default::default(), counted: Default::default() }
    }

    pub fn add_to(&self, routes: Routes) -> Routes {
        let runtime = RuntimeServiceServer::new(self.clone());
        let images = ImageServiceServer::new(self.clone());
        routes
            .add_service(runtime.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
            .add_service(images.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
    }
}
