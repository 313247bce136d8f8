//! CRI's ImageService. An image is known by the digest of its configuration; in containerd's store it has a row for each
//! of its names: the id, `NAME:TAG`, `NAME@DIGEST`.

mod catalog;
mod filesystem;
mod name;
mod pull;
mod watch;

use std::collections::HashMap;

use serde_json::{Value, json};
use tare_proto::containerd::services::images::v1::ImageDelete;
use tare_proto::runtime::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Cri, namespace};
use crate::error::{Error, Result as Outcome};
pub(super) use catalog::Catalog;
use catalog::Image;
pub(super) use catalog::manifest;
pub(super) use filesystem::Counted;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::image_service_server::ImageService for Cri {
    type StreamImagesStream = Answers<pb::StreamImagesResponse>;

    async fn list_images(&self, request: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(Response::new(pb::ListImagesResponse { images }))
    }

    async fn stream_images(&self, request: Request<pb::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        const PIECE: usize = 100;
        let images = self.list(request.into_inner().filter).await?;
        let pieces: Vec<_> =
            images.chunks(PIECE).map(|piece| Ok(pb::StreamImagesResponse { images: piece.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    /// An image that is not here is an answer without one, not an error.
    async fn image_status(&self, request: Request<pb::ImageStatusRequest>) -> Answer<pb::ImageStatusResponse> {
        let request = request.into_inner();
        let reference = reference(request.image)?;
        let image = self.off_thread(move |cri| cri.find_image(&reference)).await?;
        let info = match image.as_ref().filter(|_| request.verbose) {
            Some(image) => HashMap::from([("info".to_owned(), self.details(image.clone()).await?)]),
            None => HashMap::new(),
        };
        Ok(Response::new(pb::ImageStatusResponse { image: image.map(shown), info }))
    }

    async fn pull_image(&self, request: Request<pb::PullImageRequest>) -> Answer<pb::PullImageResponse> {
        let request = request.into_inner();
        let reference = reference(request.image)?;
        let cri = self.clone();
        let image_ref = self.parts.finish(async move { cri.pull(&reference, request.auth).await }).await?;
        Ok(Response::new(pb::PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<pb::RemoveImageRequest>) -> Answer<pb::RemoveImageResponse> {
        let reference = reference(request.into_inner().image)?;
        let cri = self.clone();
        self.parts.finish(async move { cri.remove(reference).await }).await?;
        Ok(Response::new(pb::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<pb::ImageFsInfoRequest>) -> Answer<pb::ImageFsInfoResponse> {
        let usage = self.off_thread(|cri| cri.filesystem_usage()).await?;
        // Containers' writable layers lie beside the images'.
        let filesystems = vec![usage];
        Ok(Response::new(pb::ImageFsInfoResponse {
            image_filesystems: filesystems.clone(),
            container_filesystems: filesystems,
        }))
    }
}

impl Cri {
    async fn list(&self, filter: Option<pb::ImageFilter>) -> Outcome<Vec<pb::Image>> {
        let only = filter.and_then(|filter| filter.image).map(|image| image.image).filter(|name| !name.is_empty());
        let images = self
            .off_thread(move |cri| match only {
                Some(reference) => Ok(cri.find_image(&reference)?.into_iter().collect()),
                None => cri.catalog.list(&cri.parts, &namespace()),
            })
            .await?;
        Ok(images.into_iter().map(shown).collect())
    }

    /// Takes all of an image's names away, also while containers run from it: they keep its layers.
    async fn remove(&self, reference: String) -> Outcome<()> {
        let cri = self.clone();
        let removed = self.off_thread(move |_| {
            let Some(image) = cri.find_image(&reference)? else { return Ok(false) };
            for name in &image.names {
                match cri.parts.images.delete(&namespace(), name, None) {
                    Ok(()) => cri.parts.tell(&namespace(), "/images/delete", &ImageDelete { name: name.clone() }),
                    Err(Error::NotFound(_)) => {} // somebody else removes it as well
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        });
        if removed.await? {
            self.parts.collector.after(true).await?;
        }
        Ok(())
    }

    /// By id, by the beginning of one, or by any name.
    pub(in crate::cri) fn find_image(&self, reference: &str) -> Outcome<Option<Image>> {
        let images = self.catalog.list(&self.parts, &namespace())?;
        let named = name::complete(reference).ok();
        let has = |image: &&Image| image.names.iter().any(|name| Some(name) == named.as_ref() || name == reference);
        if let Some(image) = images.iter().find(has) {
            return Ok(Some(image.clone()));
        }
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        let mut of_id = images.iter().filter(|image| name::begins(&image.facts.id, digits));
        let (first, other) = (of_id.next(), of_id.next());
        Ok(first.filter(|_| other.is_none()).cloned())
    }

    /// What `crictl inspecti` shows beside the image itself.
    async fn details(&self, image: Image) -> Outcome<String> {
        self.off_thread(move |cri| {
            let config = Catalog::document(&cri.parts, &namespace(), &image.facts.id)?;
            let config: Value = serde_json::from_slice(&config)
                .map_err(|error| Error::Internal(format!("reading {}: {error}", image.facts.id)))?;
            Ok(json!({ "chainID": image.facts.chain, "imageSpec": config }).to_string())
        })
        .await
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cri) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let cri = self.clone();
        let work = tokio::task::spawn_blocking(move || work(&cri)).await;
        work.map_err(|error| Error::Internal(format!("a request ended early: {error}")))?
    }
}

fn reference(image: Option<pb::ImageSpec>) -> Outcome<String> {
    let reference = image.map(|image| image.image).filter(|reference| !reference.is_empty());
    reference.ok_or_else(|| Error::InvalidArgument("image.image must be set".into()))
}

fn shown(image: Image) -> pb::Image {
    let (repo_digests, repo_tags) =
        image.names.iter().filter(|name| name.contains('/')).cloned().partition(|name| name.contains('@'));
    // The image's user is a number or a name, with a group behind it that does not count here.
    let user = image.facts.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    pb::Image {
        id: image.facts.id.clone(),
        repo_tags,
        repo_digests,
        size: image.facts.size,
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        uid: uid.map(|value| pb::Int64Value { value }),
        spec: None,
        pinned: image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::catalog::Facts;
    use super::*;

    fn with_user(user: &str) -> pb::Image {
        let facts = Facts { id: "sha256:1".into(), chain: String::new(), size: 1, user: user.into() };
        let names = ["sha256:1", "docker.io/library/a:1", "docker.io/library/a@sha256:2"].map(str::to_owned).to_vec();
        shown(Image { facts: Arc::new(facts), names, pinned: false })
    }

    #[test]
    fn an_images_user_is_a_number_or_a_name_and_never_both() {
        for (user, uid, name) in
            [("", None, ""), ("1002", Some(1002), ""), ("1002:5", Some(1002), ""), ("www-data:g", None, "www-data")]
        {
            let image = with_user(user);
            assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, name), "{user}");
        }
    }

    #[test]
    fn names_are_tags_or_digests_and_the_id_is_neither() {
        let image = with_user("");
        assert_eq!(image.repo_tags, ["docker.io/library/a:1"]);
        assert_eq!(image.repo_digests, ["docker.io/library/a@sha256:2"]);
    }
}
