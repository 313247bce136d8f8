//! Mounts that the daemon would make for its clients: of the kinds that our snapshotters give it makes none, as containerd does
//! not for these either. So there is never one to list, and whoever asks for one is told to mount by himself.
//!
//! Source: containerd core/mount/manager; clients mount themselves what is `not implemented`.

use tare_proto::containerd::services::mounts::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Services, namespace};
use crate::error::Error;
use crate::filter::Filter;

fn missing(name: &str) -> Error {
    Error::NotFound(format!("mount {name:?}"))
}

#[tonic::async_trait]
impl pb::mounts_server::Mounts for Services {
    type ListStream = Answers<pb::ListMessage>;

    async fn activate(&self, request: Request<pb::ActivateRequest>) -> Result<Response<pb::ActivateResponse>, Status> {
        namespace(&request)?;
        let kinds: Vec<String> = request.into_inner().mounts.into_iter().map(|mount| mount.r#type).collect();
        Err(Error::Unimplemented(format!("mounting {} is left to who asks", kinds.join(", "))).into())
    }

    async fn deactivate(&self, request: Request<pb::DeactivateRequest>) -> Result<Response<()>, Status> {
        namespace(&request)?;
        Err(missing(&request.into_inner().name).into())
    }

    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        namespace(&request)?;
        Err(missing(&request.into_inner().name).into())
    }

    async fn update(&self, request: Request<pb::UpdateRequest>) -> Result<Response<pb::UpdateResponse>, Status> {
        namespace(&request)?;
        Err(missing(&request.into_inner().info.unwrap_or_default().name).into())
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        namespace(&request)?;
        Filter::parse(&request.into_inner().filters)?;
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}
