//! The connection to the daemon: one channel, a client for each service.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use hyper_util::rt::TokioIo;
use tare_proto::containerd::services::{
    containers::v1::containers_client::ContainersClient, content::v1::content_client::ContentClient,
    events::v1::events_client::EventsClient, images::v1::images_client::ImagesClient,
    introspection::v1::introspection_client::IntrospectionClient, leases::v1::leases_client::LeasesClient,
    namespaces::v1::namespaces_client::NamespacesClient, snapshots::v1::snapshots_client::SnapshotsClient,
    streaming::v1::streaming_client::StreamingClient, tasks::v1::tasks_client::TasksClient,
    transfer::v1::transfer_client::TransferClient, version::v1::version_client::VersionClient,
};
use tare_proto::tare::network::v1::networks_client::NetworksClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

const LARGEST_MESSAGE: usize = 16 << 20;

pub struct Client {
    channel: Channel,
    pub address: String,
    pub namespace: String,
}

impl Client {
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(address: &str, namespace: &str) -> Result<Client> {
        let path: Arc<str> = address.strip_prefix("unix://").unwrap_or(address).into();
        let shown = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
        });
        // The address is of no meaning to a Unix socket, but there has to be one.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.with_context(|| {
            format!("connecting to tared at {shown} (is it running? --address names another socket)")
        })?;
        Ok(Client { channel, address: shown.to_string(), namespace: namespace.to_owned() })
    }

    /// A request in our namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(value) = self.namespace.parse() {
            request.metadata_mut().insert("containerd-namespace", value);
        }
        request
    }

    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    pub fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    pub fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel.clone())
    }

    pub fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub fn networks(&self) -> NetworksClient<Channel> {
        NetworksClient::new(self.channel.clone())
    }

    pub fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub fn streaming(&self) -> StreamingClient<Channel> {
        StreamingClient::new(self.channel.clone())
    }

    pub fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    pub fn transfer(&self) -> TransferClient<Channel> {
        TransferClient::new(self.channel.clone())
    }

    pub fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}

/// The daemon's sentence, without gRPC around it.
pub fn said(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
