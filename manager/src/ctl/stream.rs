//! Streams beside a transfer: for its progress, for an archive, for credentials. Source: containerd's streaming service.

use anyhow::{Context as _, Result};
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::streaming::v1::StreamInit;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, said};

pub struct Stream {
    /// What a transfer calls it.
    pub id: String,
    /// Dropped, it ends the stream.
    pub to_daemon: mpsc::Sender<Any>,
    pub from_daemon: tonic::Streaming<Any>,
}

pub async fn open(client: &Client, purpose: &str) -> Result<Stream> {
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).context("getting a random name")?;
    let id = format!("{purpose}-{:016x}", u64::from_ne_bytes(number));
    let (to_daemon, messages) = mpsc::channel(16);
    let init = any::pack("containerd.services.streaming.v1.StreamInit", &StreamInit { id: id.clone() });
    to_daemon.send(init).await.context("opening a stream")?;
    let request = client.request(ReceiverStream::new(messages));
    let mut from_daemon = client.streaming().stream(request).await.map_err(said)?.into_inner();
    from_daemon.message().await.map_err(said)?; // it is there
    Ok(Stream { id, to_daemon, from_daemon })
}
