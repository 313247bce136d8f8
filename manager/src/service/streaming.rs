use prost::Message as _;
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::streaming::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Services, namespace};
use crate::error::Error;
use crate::streaming::{DEPTH, Stream};

const INIT: &str = "containerd.services.streaming.v1.StreamInit";

#[tonic::async_trait]
impl pb::streaming_server::Streaming for Services {
    type StreamStream = Answers<Any>;

    /// The first message names the stream; from then on it is whoever's takes it by that name.
    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let namespace = namespace(&request)?;
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.unwrap_or_default();
        let named = any::unpack::<pb::StreamInit>(&first, INIT)
            .map_err(|error| Error::InvalidArgument(format!("reading StreamInit: {error}")))?;
        let named = named.ok_or_else(|| Error::InvalidArgument("a stream begins with StreamInit".into()))?;
        let (to_client, outgoing) = mpsc::channel(DEPTH);
        let (to_us, from_client) = mpsc::channel(DEPTH);
        self.streams.register(namespace.as_str(), &named.id, Stream { to_client: to_client.clone(), from_client })?;
        let ready = Any { type_url: "google.protobuf.Empty".into(), value: ().encode_to_vec() };
        to_client.send(ready).await.map_err(|_| Status::cancelled("the stream was closed"))?;
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                if to_us.send(message).await.is_err() {
                    break; // whoever used it has ended
                }
            }
        });
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        Ok(Response::new(Box::pin(outgoing.map(Ok))))
    }
}
