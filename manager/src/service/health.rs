//! `grpc.health.v1.Health`: whoever gets an answer knows that we serve.

use tare_proto::grpc::health::v1::health_check_response::ServingStatus;
use tare_proto::grpc::health::v1::health_server::{Health, HealthServer};
use tare_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use super::Answers;

struct Alive;

pub(super) fn server() -> HealthServer<impl Health> {
    HealthServer::new(Alive)
}

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

#[tonic::async_trait]
impl Health for Alive {
    type WatchStream = Answers<HealthCheckResponse>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    /// Says it once; after that only the end of the connection is news.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(serving())).chain(tokio_stream::pending()))))
    }
}
