use tare_proto::containerd::services::version::v1::{VersionResponse, version_server::Version};
use tonic::{Request, Response, Status};

use super::Services;

#[tonic::async_trait]
impl Version for Services {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: crate::VERSION.into(), revision: crate::REVISION.into() }))
    }
}
