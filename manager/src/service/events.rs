use tare_proto::containerd::services::events::v1 as pb;
use tare_proto::containerd::types::Envelope;
use tonic::{Request, Response, Status};

use super::{Answers, Services, namespace, required};

#[tonic::async_trait]
impl pb::events_server::Events for Services {
    type SubscribeStream = Answers<Envelope>;

    async fn publish(&self, request: Request<pb::PublishRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        self.events.publish(&namespace, &request.topic, required(request.event, "event")?)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<pb::ForwardRequest>) -> Result<Response<()>, Status> {
        self.events.forward(required(request.into_inner().envelope, "envelope")?)?;
        Ok(Response::new(()))
    }

    /// Live when the call is accepted; not bound to the caller's namespace.
    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut subscription = self.events.subscribe(&request.into_inner().filters)?;
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            loop {
                yield subscription.next().await.map(std::sync::Arc::unwrap_or_clone)?;
            }
        })))
    }
}
