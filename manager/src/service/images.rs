use std::time::SystemTime;

use tare_proto::containerd::services::images::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, lease, mask, namespace, required};

#[tonic::async_trait]
impl pb::images_server::Images for Services {
    async fn get(&self, request: Request<pb::GetImageRequest>) -> Result<Response<pb::GetImageResponse>, Status> {
        let (namespace, name) = (namespace(&request)?, request.into_inner().name);
        let image = self.blocking(move |services| services.images.get(&namespace, &name)).await?;
        Ok(Response::new(pb::GetImageResponse { image: Some(image) }))
    }

    async fn list(&self, request: Request<pb::ListImagesRequest>) -> Result<Response<pb::ListImagesResponse>, Status> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        let images = self.blocking(move |services| services.images.list(&namespace, &filters)).await?;
        Ok(Response::new(pb::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<pb::CreateImageRequest>,
    ) -> Result<Response<pb::CreateImageResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let request = request.into_inner();
        let (given, at) = (required(request.image, "image")?, time(request.source_date_epoch)?);
        let of = namespace.clone();
        let image = self
            .blocking(move |services| {
                services.hold(&of, lease.as_ref(), "images", &given.name)?;
                services.images.create(&of, given, at)
            })
            .await?;
        let event = pb::ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
        self.tell(&namespace, "/images/create", &event);
        Ok(Response::new(pb::CreateImageResponse { image: Some(image) }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateImageRequest>,
    ) -> Result<Response<pb::UpdateImageResponse>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let (given, mask) = (required(request.image, "image")?, mask(request.update_mask));
        let at = time(request.source_date_epoch)?;
        let of = namespace.clone();
        let image = self.blocking(move |services| services.images.update(&of, &given, &mask, at)).await?;
        let event = pb::ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
        self.tell(&namespace, "/images/update", &event);
        Ok(Response::new(pb::UpdateImageResponse { image: Some(image) }))
    }

    async fn delete(&self, request: Request<pb::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (of, name) = (namespace.clone(), request.name.clone());
        self.blocking(move |services| services.images.delete(&of, &name, request.target.as_ref())).await?;
        self.tell(&namespace, "/images/delete", &pb::ImageDelete { name: request.name });
        self.collector.after(request.sync).await?;
        Ok(Response::new(()))
    }
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Result<Option<SystemTime>, Status> {
    let wrong = |_| Status::invalid_argument("source_date_epoch is no time");
    timestamp.map(SystemTime::try_from).transpose().map_err(wrong)
}
