//! The image of a container, as far as running it needs.

use std::collections::HashMap;

use tare_proto::containerd::types::Mount;

use crate::cri::image::{Catalog, manifest};
use crate::cri::{Cri, namespace};
use crate::error::{Error, Result};
use crate::names::{Digest, Labels};
use crate::oci::ImageConfig;
use crate::snapshot::OVERLAY;

pub struct Image {
    /// The digest of its configuration.
    pub id: String,
    /// Under which it is known here, by tag if it has one.
    pub name: String,
    /// Its name by digest, if it has one.
    pub digest: String,
    /// The snapshot of its top layer.
    pub chain: String,
    pub config: ImageConfig,
}

impl Cri {
    /// Finds an image by id, by the beginning of one, or by name.
    ///
    /// # Errors
    /// `NotFound`: it was not pulled, or not whole.
    pub(super) fn image(&self, reference: &str) -> Result<Image> {
        if reference.is_empty() {
            return Err(Error::InvalidArgument("config.image.image must be set".into()));
        }
        let found = self.find_image(reference)?;
        let image = found.ok_or_else(|| Error::NotFound(format!("image {reference:?}")))?;
        let tagged = image.names.iter().find(|name| name.contains('/') && !name.contains('@'));
        Ok(Image {
            digest: image.names.iter().find(|name| name.contains('@')).cloned().unwrap_or_default(),
            name: tagged.or(image.names.first()).cloned().unwrap_or_default(),
            chain: image.facts.chain.clone(),
            config: ImageConfig::read(&Catalog::document(&self.parts, &namespace(), &image.facts.id)?)?,
            id: image.facts.id.clone(),
        })
    }

    /// A snapshot on an image's layers, and what to mount. It lives as long as the row of the container that is made from it:
    /// the collector, which does not know our rows, is told so by a label.
    pub(super) fn snapshot_of(
        &self,
        image: &Image,
        key: &str,
        of: &str,
        more: Labels,
        view: bool,
    ) -> Result<Vec<Mount>> {
        let mut labels = HashMap::from([("containerd.io/gc.root".to_owned(), of.to_owned())]);
        labels.extend(more);
        let prepare = || self.parts.snapshots.prepare(&namespace(), OVERLAY, key, &image.chain, &labels, view);
        match prepare() {
            // Somebody fetched the image without unpacking it.
            Err(Error::NotFound(_)) => {
                self.unpack(image)?;
                prepare()
            }
            prepared => prepared,
        }
    }

    fn unpack(&self, image: &Image) -> Result<()> {
        let target = self.parts.images.get(&namespace(), &image.name)?.target.unwrap_or_default();
        let manifest = manifest(&self.parts, &namespace(), &target.media_type, &target.digest)?;
        let config = Digest::parse(&manifest.config.digest)?;
        self.parts.transfers.unpack_here(&namespace(), OVERLAY, &config, &manifest.layers)
    }
}
