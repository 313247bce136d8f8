use tare_proto::containerd::services::leases::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, namespace, required};
use crate::error::Error;
use crate::identity;
use crate::names::LeaseId;

#[tonic::async_trait]
impl pb::leases_server::Leases for Services {
    async fn create(&self, request: Request<pb::CreateRequest>) -> Result<Response<pb::CreateResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = if request.id.is_empty() { random_id()? } else { LeaseId::parse(&request.id)? };
        let lease = self.blocking(move |services| services.leases.create(&namespace, &id, request.labels)).await?;
        Ok(Response::new(pb::CreateResponse { lease: Some(lease) }))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = LeaseId::parse(&request.id)?;
        self.blocking(move |services| services.leases.delete(&namespace, &id)).await?;
        self.collector.after(request.sync).await?;
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        let leases = self.blocking(move |services| services.leases.list(&namespace, &filters)).await?;
        Ok(Response::new(pb::ListResponse { leases }))
    }

    async fn add_resource(&self, request: Request<pb::AddResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (id, resource) = (LeaseId::parse(&request.id)?, required(request.resource, "resource")?);
        self.blocking(move |services| services.leases.add(&namespace, &id, &resource)).await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<pb::DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (id, resource) = (LeaseId::parse(&request.id)?, required(request.resource, "resource")?);
        self.blocking(move |services| services.leases.remove(&namespace, &id, &resource)).await?;
        self.collector.after(false).await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<pb::ListResourcesRequest>,
    ) -> Result<Response<pb::ListResourcesResponse>, Status> {
        let (namespace, id) = (namespace(&request)?, LeaseId::parse(&request.into_inner().id)?);
        let resources = self.blocking(move |services| services.leases.resources(&namespace, &id)).await?;
        Ok(Response::new(pb::ListResourcesResponse { resources }))
    }
}

fn random_id() -> Result<LeaseId, Error> {
    LeaseId::parse(&identity::random()?)
}
