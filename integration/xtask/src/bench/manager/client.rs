//! What each daemon is asked, one call a function.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use hyper_util::rt::TokioIo;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::content::v1 as content;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::leases::v1 as leases;
use tare_proto::containerd::services::snapshots::v1 as snapshots;
use tare_proto::containerd::services::version::v1 as version;
use tare_proto::containerd::types::Descriptor;
use tokio_stream::StreamExt as _;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use super::MANY;

const NAMESPACE: &str = "bench";
const SNAPSHOTTER: &str = "overlayfs";
/// What is sent and read at once, as clients do.
const PIECE: usize = 1 << 20;

#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// The digest of a blob that all images refer to.
    target: Option<Descriptor>,
}

pub async fn connect(socket: PathBuf) -> Result<Channel> {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_static("http://daemon").timeout(super::PATIENCE);
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("it is plain text"));
    request
}

fn rooted() -> HashMap<String, String> {
    HashMap::from([("containerd.io/gc.root".to_owned(), "now".to_owned())])
}

impl Client {
    pub async fn connect(socket: PathBuf) -> Result<Client> {
        Ok(Client { channel: connect(socket).await?, target: None })
    }

    fn containers(&self) -> containers::containers_client::ContainersClient<Channel> {
        containers::containers_client::ContainersClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    fn images(&self) -> images::images_client::ImagesClient<Channel> {
        images::images_client::ImagesClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    fn snapshots(&self) -> snapshots::snapshots_client::SnapshotsClient<Channel> {
        snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone())
    }

    fn content(&self) -> content::content_client::ContentClient<Channel> {
        content::content_client::ContentClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub async fn version(&mut self, _: usize) -> Result<()> {
        version::version_client::VersionClient::new(self.channel.clone()).version(within(())).await?;
        Ok(())
    }

    async fn container(&self, id: String) -> Result<()> {
        let runtime = Some(containers::container::Runtime { name: "io.containerd.runc.v2".into(), options: None });
        // Ten thousand of them still fit into an answer of containerd's.
        let spec = Some(prost_types::Any { type_url: "types.containerd.io/spec".into(), value: vec![b' '; 1 << 10] });
        let container = containers::Container { id, runtime, spec, image: "image".into(), ..Default::default() };
        self.containers().create(within(containers::CreateContainerRequest { container: Some(container) })).await?;
        Ok(())
    }

    pub async fn create_container(&mut self, n: usize) -> Result<()> {
        self.container(format!("container-{n}")).await
    }

    pub async fn create_kept_container(self, n: usize) -> Result<()> {
        self.container(format!("kept-{n}")).await
    }

    pub async fn get_container(&mut self, n: usize) -> Result<()> {
        self.containers().get(within(containers::GetContainerRequest { id: format!("container-{n}") })).await?;
        Ok(())
    }

    pub async fn delete_container(&mut self, n: usize) -> Result<()> {
        self.containers().delete(within(containers::DeleteContainerRequest { id: format!("container-{n}") })).await?;
        Ok(())
    }

    pub async fn list_containers(&mut self, _: usize) -> Result<()> {
        let answer = self.containers().list(within(containers::ListContainersRequest::default())).await?;
        ensure!(answer.get_ref().containers.len() == MANY, "{} containers", answer.get_ref().containers.len());
        Ok(())
    }

    pub async fn lease(&mut self, n: usize) -> Result<()> {
        let mut leases = leases::leases_client::LeasesClient::new(self.channel.clone());
        let id = format!("lease-{n}");
        leases.create(within(leases::CreateRequest { id: id.clone(), ..Default::default() })).await?;
        leases.delete(within(leases::DeleteRequest { id, sync: false })).await?;
        Ok(())
    }

    pub async fn create_image(self, n: usize) -> Result<()> {
        let name = format!("registry.example/repository/image-{n}:latest");
        let image = images::Image { name, target: self.target.clone(), ..Default::default() };
        self.images().create(within(images::CreateImageRequest { image: Some(image), ..Default::default() })).await?;
        Ok(())
    }

    pub async fn list_images(&mut self, _: usize) -> Result<()> {
        let answer = self.images().list(within(images::ListImagesRequest::default())).await?;
        ensure!(answer.get_ref().images.len() == MANY, "{} images", answer.get_ref().images.len());
        Ok(())
    }

    pub async fn delete_image(&mut self, n: usize) -> Result<()> {
        let name = format!("registry.example/repository/image-{n}:latest");
        self.images().delete(within(images::DeleteImageRequest { name, sync: true, ..Default::default() })).await?;
        Ok(())
    }

    async fn prepare_as(&self, key: String, labels: HashMap<String, String>) -> Result<()> {
        let snapshotter = SNAPSHOTTER.into();
        let request = snapshots::PrepareSnapshotRequest { snapshotter, key, labels, ..Default::default() };
        self.snapshots().prepare(within(request)).await?;
        Ok(())
    }

    pub async fn prepare(&mut self, n: usize) -> Result<()> {
        self.prepare_as(format!("key-{n}"), rooted()).await
    }

    pub async fn prepare_kept(self, n: usize) -> Result<()> {
        self.prepare_as(format!("kept-{n}"), rooted()).await
    }

    pub async fn mounts(&mut self, n: usize) -> Result<()> {
        let (snapshotter, key) = (SNAPSHOTTER.into(), format!("key-{n}"));
        self.snapshots().mounts(within(snapshots::MountsRequest { snapshotter, key })).await?;
        Ok(())
    }

    pub async fn commit(&mut self, n: usize) -> Result<()> {
        let (snapshotter, key, name) = (SNAPSHOTTER.into(), format!("key-{n}"), format!("name-{n}"));
        let request =
            snapshots::CommitSnapshotRequest { snapshotter, name, key, labels: rooted(), ..Default::default() };
        self.snapshots().commit(within(request)).await?;
        Ok(())
    }

    pub async fn remove_snapshot(&mut self, n: usize) -> Result<()> {
        let (snapshotter, key) = (SNAPSHOTTER.into(), format!("name-{n}"));
        self.snapshots().remove(within(snapshots::RemoveSnapshotRequest { snapshotter, key })).await?;
        Ok(())
    }

    pub async fn list_snapshots(&mut self, _: usize) -> Result<()> {
        let request = snapshots::ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), ..Default::default() };
        let mut answer = self.snapshots().list(within(request)).await?.into_inner();
        let mut seen = 0;
        while let Some(piece) = answer.next().await {
            seen += piece?.info.len();
        }
        ensure!(seen >= MANY, "{seen} snapshots");
        Ok(())
    }

    /// Writes a blob; every round another one, since the first bytes differ.
    pub async fn write(&mut self, bytes: &[u8], n: usize) -> Result<()> {
        let mut first = bytes[..PIECE].to_vec();
        first[..8].copy_from_slice(&n.to_le_bytes());
        let pieces = std::iter::once(first).chain(bytes[PIECE..].chunks(PIECE).map(<[u8]>::to_vec));
        let mut offset = 0;
        let total = i64::try_from(bytes.len())?;
        let reference = format!("blob-{n}");
        let begin = content::WriteContentRequest {
            action: content::WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total,
            ..Default::default()
        };
        let mut requests = vec![begin];
        requests.extend(pieces.map(|data| {
            let request = content::WriteContentRequest {
                action: content::WriteAction::Write.into(),
                offset,
                data,
                ..Default::default()
            };
            offset += i64::try_from(request.data.len()).unwrap_or_default();
            request
        }));
        requests.push(content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            offset: total,
            total,
            labels: rooted(),
            ..Default::default()
        });
        let mut answers = self.content().write(within(tokio_stream::iter(requests))).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.next().await {
            last = Some(answer?);
        }
        let committed = last.filter(|last| last.offset == total && !last.digest.is_empty());
        let Some(committed) = committed else { anyhow::bail!("the blob was not committed") };
        if n == 0 {
            self.target = Some(Descriptor {
                media_type: "application/octet-stream".into(),
                digest: committed.digest,
                size: total,
                ..Default::default()
            });
        }
        Ok(())
    }

    pub async fn read(&mut self, bytes: &[u8]) -> Result<()> {
        let digest = self.target.as_ref().map(|target| target.digest.clone()).unwrap_or_default();
        let request = content::ReadContentRequest { digest, ..Default::default() };
        let mut answer = self.content().read(within(request)).await?.into_inner();
        let mut length = 0;
        while let Some(piece) = answer.next().await {
            length += piece?.data.len();
        }
        ensure!(length == bytes.len(), "{length} bytes were read");
        Ok(())
    }
}
