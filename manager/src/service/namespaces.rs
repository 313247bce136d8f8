use tare_proto::containerd::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use tare_proto::containerd::services::namespaces::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, mask, required};
use crate::names::Namespace;

#[tonic::async_trait]
impl pb::namespaces_server::Namespaces for Services {
    async fn get(
        &self,
        request: Request<pb::GetNamespaceRequest>,
    ) -> Result<Response<pb::GetNamespaceResponse>, Status> {
        let name = Namespace::parse(&request.into_inner().name)?;
        let record = self.blocking(move |services| services.namespaces.get(&name)).await?;
        Ok(Response::new(pb::GetNamespaceResponse { namespace: Some(record) }))
    }

    async fn list(
        &self,
        _: Request<pb::ListNamespacesRequest>,
    ) -> Result<Response<pb::ListNamespacesResponse>, Status> {
        let namespaces = self.blocking(|services| services.namespaces.list()).await?;
        Ok(Response::new(pb::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<pb::CreateNamespaceRequest>,
    ) -> Result<Response<pb::CreateNamespaceResponse>, Status> {
        let given = required(request.into_inner().namespace, "namespace")?;
        let name = Namespace::parse(&given.name)?;
        let made = name.clone();
        let record = self.blocking(move |services| services.namespaces.create(&made, given.labels)).await?;
        self.tell(
            &name,
            "/namespaces/create",
            &NamespaceCreate { name: name.to_string(), labels: record.labels.clone() },
        );
        Ok(Response::new(pb::CreateNamespaceResponse { namespace: Some(record) }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateNamespaceRequest>,
    ) -> Result<Response<pb::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let given = required(request.namespace, "namespace")?;
        let (name, mask) = (Namespace::parse(&given.name)?, mask(request.update_mask));
        let changed = name.clone();
        let record = self.blocking(move |services| services.namespaces.update(&changed, &given.labels, &mask)).await?;
        self.tell(
            &name,
            "/namespaces/update",
            &NamespaceUpdate { name: name.to_string(), labels: record.labels.clone() },
        );
        Ok(Response::new(pb::UpdateNamespaceResponse { namespace: Some(record) }))
    }

    async fn delete(&self, request: Request<pb::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let name = Namespace::parse(&request.into_inner().name)?;
        let gone = name.clone();
        self.blocking(move |services| services.namespaces.delete(&gone)).await?;
        self.tell(&name, "/namespaces/delete", &NamespaceDelete { name: name.to_string() });
        Ok(Response::new(()))
    }
}
