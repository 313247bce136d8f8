//! PullImage: one pull, and the three names it leaves.

use tare_proto::containerd::services::images::v1 as images;
use tare_proto::runtime::v1 as pb;
use tokio::sync::mpsc;

use super::{Cri, name, namespace};
use crate::error::{Error, Result};
use crate::names::Labels;
use crate::streaming::DEPTH;
use crate::transfer::{Platform, Puller, Request};

/// Says that an image came by CRI.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

impl Cri {
    /// Pulls, and returns the image's id.
    ///
    /// # Errors
    /// A name that is none; the registry's, or the disk's.
    pub(super) async fn pull(&self, reference: &str, auth: Option<pb::AuthConfig>) -> Result<String> {
        let full = name::complete(reference)?;
        if auth.is_some_and(|auth| auth != pb::AuthConfig::default()) {
            return Err(Error::Unimplemented("auth: credentials for a registry".into()));
        }
        let request = Request {
            reference: full.clone(),
            name: full.clone(),
            labels: Labels::from([(MANAGED.0.to_owned(), MANAGED.1.to_owned())]),
            platform: Platform::own(),
            scheme: None,
            unpack: true,
        };
        let puller = Puller {
            store: self.parts.store.clone(),
            content: self.parts.content.clone(),
            snapshots: self.parts.snapshots.clone(),
        };
        let (tell, mut told) = mpsc::channel(DEPTH);
        let nobody_looks = tokio::spawn(async move { while told.recv().await.is_some() {} });
        let pulled = puller.pull(&namespace(), &request, tell).await;
        nobody_looks.abort();
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(error) => {
                self.parts.collector.after(false).await?; // what came before the failure
                return Err(error);
            }
        };
        self.told_of(&pulled.image, pulled.new);
        self.off_thread(move |cri| {
            let image = cri.find_image(&full)?;
            let image = image.ok_or_else(|| Error::NotFound(format!("image {full:?}, pulled a moment ago,")))?;
            let target = pulled.image.target.clone().unwrap_or_default();
            for also in [image.facts.id.clone(), name::by_digest(&full, &target.digest)?] {
                if also != full {
                    cri.name(images::Image { name: also, ..pulled.image.clone() })?;
                }
            }
            Ok(image.facts.id.clone())
        })
        .await
    }

    /// Gives an image one more name, whatever it stood for before.
    fn name(&self, image: images::Image) -> Result<()> {
        match self.parts.images.create(&namespace(), image.clone(), None) {
            Ok(made) => self.told_of(&made, true),
            Err(Error::AlreadyExists(_)) => {
                let paths = ["target".to_owned(), format!("labels.{}", MANAGED.0)];
                let changed = self.parts.images.update(&namespace(), &image, &paths, None)?;
                self.told_of(&changed, false);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn told_of(&self, image: &images::Image, new: bool) {
        let (name, labels) = (image.name.clone(), image.labels.clone());
        if new {
            self.parts.tell(&namespace(), "/images/create", &images::ImageCreate { name, labels });
        } else {
            self.parts.tell(&namespace(), "/images/update", &images::ImageUpdate { name, labels });
        }
    }
}
