//! CRI's ImageService.

use tare_proto::runtime::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Cri};
use crate::error::Error;

type Answer<T> = Result<Response<T>, Status>;

fn unserved<T>(method: &str) -> Answer<T> {
    Err(Error::Unimplemented(format!("ImageService.{method}")).into())
}

#[tonic::async_trait]
impl pb::image_service_server::ImageService for Cri {
    type StreamImagesStream = Answers<pb::StreamImagesResponse>;

    async fn list_images(&self, _: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        unserved("ListImages")
    }

    async fn stream_images(&self, _: Request<pb::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        unserved("StreamImages")
    }

    async fn image_status(&self, _: Request<pb::ImageStatusRequest>) -> Answer<pb::ImageStatusResponse> {
        unserved("ImageStatus")
    }

    async fn pull_image(&self, _: Request<pb::PullImageRequest>) -> Answer<pb::PullImageResponse> {
        unserved("PullImage")
    }

    async fn remove_image(&self, _: Request<pb::RemoveImageRequest>) -> Answer<pb::RemoveImageResponse> {
        unserved("RemoveImage")
    }

    async fn image_fs_info(&self, _: Request<pb::ImageFsInfoRequest>) -> Answer<pb::ImageFsInfoResponse> {
        unserved("ImageFsInfo")
    }
}
