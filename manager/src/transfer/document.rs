//! Manifests, indexes and configurations, as far as a pull needs them.
//!
//! Source: image-spec manifest.md, image-index.md, config.md.

use std::collections::HashMap;

use serde::Deserialize;

use super::platform::Platform;

use crate::error::{Error, Result};
use crate::names::{Digest, Labels};

/// What a descriptor points to.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    pub platform: Option<Platform>,
    /// Where it lies beside the registry.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// Source: image-spec media-types.md; docker's image manifest, schema 2.
const INDEXES: &[&str] =
    &["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

impl Descriptor {
    /// # Errors
    /// `InvalidArgument`.
    pub fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }

    pub fn is_index(&self) -> bool {
        INDEXES.contains(&self.media_type.as_str())
    }

    /// A manifest or an index: it refers to others.
    pub fn is_document(&self) -> bool {
        self.is_index() || MANIFESTS.contains(&self.media_type.as_str())
    }

    /// An image's configuration, and not that of another artifact. Of old, some say nothing.
    pub fn is_image_config(&self) -> bool {
        self.media_type.is_empty() || CONFIGS.contains(&self.media_type.as_str())
    }

    /// A layer that its maker does not let others pass on.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }

    /// What a write of it is called, here and in what clients are told.
    pub fn reference(&self) -> String {
        let kind = match () {
            () if self.is_index() => "index",
            () if self.is_document() => "manifest",
            () if self.media_type.contains("layer") || self.media_type.contains(".rootfs.diff") => "layer",
            () if CONFIGS.contains(&self.media_type.as_str()) => "config",
            () => "unknown",
        };
        format!("{kind}-{}", self.digest)
    }
}

impl From<&Descriptor> for tare_proto::containerd::types::Descriptor {
    fn from(descriptor: &Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: descriptor.annotations.clone(),
        }
    }
}

impl From<&tare_proto::containerd::types::Descriptor> for Descriptor {
    fn from(target: &tare_proto::containerd::types::Descriptor) -> Self {
        Self {
            media_type: target.media_type.clone(),
            digest: target.digest.clone(),
            size: target.size.unsigned_abs(),
            annotations: target.annotations.clone(),
            platform: None,
            urls: Vec::new(),
        }
    }
}

/// A document is one or the other; one that claims to be both is refused (CVE-2021-41190).
#[derive(Debug)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// More layers than this no image has; overlayfs could not mount it.
const MOST_LAYERS: usize = 127;

impl Document {
    /// Reads a document that came with this media type.
    ///
    /// # Errors
    /// `InvalidArgument`: not such a document, or two at once.
    pub fn read(media_type: &str, bytes: &[u8]) -> Result<Document> {
        let wrong = |why: String| Error::InvalidArgument(format!("reading a manifest: {why}"));
        let text: Text = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if !text.media_type.is_empty() && !media_type.is_empty() && text.media_type != media_type {
            return Err(wrong(format!("it was sent as {media_type} and says that it is {}", text.media_type)));
        }
        match (text.manifests, text.config, text.layers) {
            (Some(manifests), None, None) if !media_type.contains("manifest.v") => Ok(Document::Index(manifests)),
            (None, Some(config), Some(layers)) if !media_type.contains("index") && !media_type.contains("list") => {
                if layers.len() > MOST_LAYERS {
                    return Err(wrong(format!("{} layers, at most {MOST_LAYERS} can be mounted", layers.len())));
                }
                Ok(Document::Manifest { config, layers })
            }
            _ => Err(wrong("it is neither an index nor a manifest, or both at once".into())),
        }
    }

    /// All that it refers to.
    pub fn children(self) -> Vec<Descriptor> {
        match self {
            Document::Index(manifests) => manifests,
            Document::Manifest { config, layers } => std::iter::once(config).chain(layers).collect(),
        }
    }

    /// The manifest of an index for a platform.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn choose<'d>(manifests: &'d [Descriptor], platform: &Platform) -> Result<&'d Descriptor> {
        let fits = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(|other| platform.takes(other));
        let only = || manifests.first().filter(|first| manifests.len() == 1 && first.platform.is_none());
        manifests
            .iter()
            .find(fits)
            .or_else(only)
            .ok_or_else(|| Error::NotFound(format!("no match for platform in manifest: {platform}")))
    }
}

/// What an image's configuration says that it runs on.
pub fn platform(config: &[u8]) -> Platform {
    serde_json::from_slice(config).unwrap_or_default() // what is malformed is told by whoever needs it
}

/// Of each thing that a document refers to: the collector keeps it with the document.
///
/// Source: containerd core/images, "ChildGCLabels".
pub fn labels(children: &[Descriptor]) -> Labels {
    let (mut manifests, mut layers, mut others) = (0, 0, 0);
    let next = |count: &mut usize, kind: &str| {
        *count += 1;
        format!("containerd.io/gc.ref.content.{kind}{}", *count - 1)
    };
    let mut labels = Labels::new();
    for child in children {
        let reference = child.reference();
        let key = match reference.split('-').next().unwrap_or_default() {
            "config" => "containerd.io/gc.ref.content.config".to_owned(),
            "manifest" => next(&mut manifests, "m."),
            "layer" => next(&mut layers, "l."),
            _ => next(&mut others, ""),
        };
        labels.insert(key, child.digest.clone());
    }
    labels
}

/// The digests of the layers, uncompressed.
///
/// # Errors
/// `InvalidArgument`.
pub fn diff_ids(config: &[u8]) -> Result<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_slice(config)
        .map_err(|error| Error::InvalidArgument(format!("reading an image's configuration: {error}")))?;
    config.rootfs.diff_ids.iter().map(|text| Digest::parse(text)).collect()
}

/// The name of each layer's snapshot: of the layer and all below it.
///
/// Source: image-spec config.md, "Layer ChainID".
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_document_is_an_index_or_a_manifest_and_never_both() {
        let descriptor = format!("{{\"digest\":\"{D}\",\"size\":1}}");
        let index = format!("{{\"manifests\":[{descriptor}]}}");
        let manifest = format!("{{\"config\":{descriptor},\"layers\":[{descriptor}]}}");
        let both = format!("{{\"manifests\":[{descriptor}],\"config\":{descriptor},\"layers\":[{descriptor}]}}");
        let (index_type, manifest_type) =
            ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json");
        assert!(matches!(Document::read(index_type, index.as_bytes()), Ok(Document::Index(_))));
        assert!(matches!(Document::read(manifest_type, manifest.as_bytes()), Ok(Document::Manifest { .. })));
        for (media_type, text) in [
            (index_type, &both),
            (manifest_type, &both),
            (index_type, &manifest),
            (manifest_type, &index),
            (index_type, &"{}".into()),
        ] {
            assert!(Document::read(media_type, text.as_bytes()).is_err(), "{media_type} {text}");
        }
    }

    #[test]
    fn chain_ids_name_a_layer_with_all_below() {
        let a = Digest::of(b"a");
        let chain = chain_ids(&[a.clone(), Digest::of(b"b")]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {}", Digest::of(b"b")).as_bytes()));
    }
}
