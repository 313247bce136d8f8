use tare_proto::containerd::events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create};
use tare_proto::containerd::services::containers::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Services, mask, namespace, required};
use crate::error::Error;
use crate::names::Id;

#[tonic::async_trait]
impl pb::containers_server::Containers for Services {
    type ListStreamStream = Answers<pb::ListContainerMessage>;

    async fn get(
        &self,
        request: Request<pb::GetContainerRequest>,
    ) -> Result<Response<pb::GetContainerResponse>, Status> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.into_inner().id)?);
        let container = self.blocking(move |services| services.containers.get(&namespace, &id)).await?;
        Ok(Response::new(pb::GetContainerResponse { container: Some(container) }))
    }

    async fn list(
        &self,
        request: Request<pb::ListContainersRequest>,
    ) -> Result<Response<pb::ListContainersResponse>, Status> {
        Ok(Response::new(pb::ListContainersResponse { containers: self.listed(request).await? }))
    }

    async fn list_stream(
        &self,
        request: Request<pb::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let containers = self.listed(request).await?.into_iter();
        let messages = containers.map(|container| Ok(pb::ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn create(
        &self,
        request: Request<pb::CreateContainerRequest>,
    ) -> Result<Response<pb::CreateContainerResponse>, Status> {
        let namespace = namespace(&request)?;
        let (of, given) = (namespace.clone(), required(request.into_inner().container, "container")?);
        let container = self.blocking(move |services| services.containers.create(&of, given)).await?;
        let runtime = container.runtime.clone().unwrap_or_default();
        let runtime = container_create::Runtime { name: runtime.name, options: runtime.options };
        let event =
            ContainerCreate { id: container.id.clone(), image: container.image.clone(), runtime: Some(runtime) };
        self.tell(&namespace, "/containers/create", &event);
        Ok(Response::new(pb::CreateContainerResponse { container: Some(container) }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateContainerRequest>,
    ) -> Result<Response<pb::UpdateContainerResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (given, mask) = (required(request.container, "container")?, mask(request.update_mask));
        let of = namespace.clone();
        let container = self.blocking(move |services| services.containers.update(&of, &given, &mask)).await?;
        let event = ContainerUpdate {
            id: container.id.clone(),
            image: container.image.clone(),
            labels: container.labels.clone(),
            snapshot_key: container.snapshot_key.clone(),
        };
        self.tell(&namespace, "/containers/update", &event);
        Ok(Response::new(pb::UpdateContainerResponse { container: Some(container) }))
    }

    async fn delete(&self, request: Request<pb::DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.into_inner().id)?);
        let (of, gone) = (namespace.clone(), id.clone());
        self.tasks.let_be_buried(&namespace, &id).await;
        self.blocking(move |services| {
            if services.tasks.has(&of, &gone) {
                return Err(Error::FailedPrecondition(format!("cannot delete container {gone} with a task")));
            }
            services.containers.delete(&of, &gone)
        })
        .await?;
        // It is gone; what belonged to it follows before its name can be used again.
        if let Err(error) = self.caretaker().clear(&namespace, &id).await {
            tracing::warn!(%namespace, %id, "{error}");
        }
        self.tell(&namespace, "/containers/delete", &ContainerDelete { id: id.to_string() });
        self.collector.after(false).await?;
        Ok(Response::new(()))
    }
}

impl Services {
    async fn listed(&self, request: Request<pb::ListContainersRequest>) -> Result<Vec<pb::Container>, Status> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        self.blocking(move |services| services.containers.list(&namespace, &filters)).await
    }
}
