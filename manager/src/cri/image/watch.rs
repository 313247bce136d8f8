//! Images that others bring into our namespace (`ctr -n k8s.io images pull`): they get a name by id as those have that the
//! kubelet pulls, so that it can ask for them by it, and the label that says so.
//!
//! Source: containerd `internal/cri/server/images/image_pull.go`, `UpdateImage`.

use tare_proto::any;
use tare_proto::containerd::services::images::v1 as images;

use super::catalog::manifest;
use crate::cri::record::off_thread;
use crate::cri::{Cri, NAMESPACE, namespace};
use crate::error::{Error, Result};
use crate::event::Subscription;

impl Cri {
    /// What is subscribed to. Subscribe before the images that are there are looked at, and none is missed.
    pub(in crate::cri) fn subscribe_to_images(&self) -> Result<Subscription> {
        let of = |topic: &str| format!("namespace=={NAMESPACE},topic==\"{topic}\"");
        self.parts.events.subscribe(&[of("/images/create"), of("/images/update")])
    }

    /// Follows what happens to images for as long as the daemon lives.
    pub(in crate::cri) async fn follow_images(self, mut told: Subscription) {
        loop {
            if let Err(error) = self.adopt_all().await {
                tracing::error!("looking through the images: {error}");
            }
            while let Ok(event) = told.next().await {
                let Some(name) = event.event.as_ref().and_then(named) else { continue };
                let cri = self.clone();
                if let Err(error) = off_thread(move || cri.adopt(&name)).await {
                    tracing::debug!("taking up an image: {error}");
                }
            }
            // Some were missed: all are looked at again.
            match self.subscribe_to_images() {
                Ok(again) => told = again,
                Err(error) => return tracing::error!("{error}"),
            }
        }
    }

    async fn adopt_all(&self) -> Result<()> {
        let cri = self.clone();
        off_thread(move || {
            for image in cri.parts.images.list(&namespace(), &[])? {
                if let Err(error) = cri.adopt(&image.name) {
                    tracing::debug!("taking up an image: {error}");
                }
            }
            Ok(())
        })
        .await
    }

    /// The id first: an image that has the label can be asked for by it.
    ///
    /// # Errors
    /// It is gone, or none that can run here.
    fn adopt(&self, name: &str) -> Result<()> {
        let image = self.parts.images.get(&namespace(), name)?;
        let labels = self.labels_of(name);
        if labels.iter().all(|(key, value)| image.labels.get(key) == Some(value)) {
            return Ok(());
        }
        let target = image.target.clone().unwrap_or_default();
        let id = manifest(&self.parts, &namespace(), &target.media_type, &target.digest)?.config.digest;
        let keys: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        let by_id = images::Image { name: id.clone(), labels: labels.clone(), ..image.clone() };
        let made = match self.parts.images.create(&namespace(), by_id.clone(), None) {
            Ok(made) => {
                self.told_of(&made, true);
                true
            }
            Err(Error::AlreadyExists(_)) => {
                self.parts.images.update(&namespace(), &by_id, &keys, None)?;
                false
            }
            Err(error) => return Err(error),
        };
        if id == name {
            return Ok(());
        }
        match self.parts.images.update(&namespace(), &images::Image { labels, ..image }, &keys, None) {
            Ok(changed) => {
                self.told_of(&changed, false);
                Ok(())
            }
            // Removed meanwhile: then nobody wants it by its id either.
            Err(error) if made => self.parts.images.delete(&namespace(), &id, None).and(Err(error)),
            Err(error) => Err(error),
        }
    }
}

fn named(event: &prost_types::Any) -> Option<String> {
    let created = any::unpack::<images::ImageCreate>(event, "containerd.services.images.v1.ImageCreate");
    if let Ok(Some(created)) = created {
        return Some(created.name);
    }
    let updated = any::unpack::<images::ImageUpdate>(event, "containerd.services.images.v1.ImageUpdate");
    updated.ok().flatten().map(|updated| updated.name)
}
