//! The image of a container, as far as running it needs.

use crate::cri::image::Catalog;
use crate::cri::{Cri, namespace};
use crate::error::{Error, Result};
use crate::oci::ImageConfig;

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
}
