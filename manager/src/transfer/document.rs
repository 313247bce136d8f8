//! Manifests, indexes and configurations, as far as a pull needs them.
//!
//! Source: image-spec manifest.md, image-index.md, config.md.

use std::collections::HashMap;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::names::Digest;

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
}

impl Descriptor {
    /// # Errors
    /// `InvalidArgument`.
    pub fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn own() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }

    /// Whether an image for `other` runs here.
    fn takes(&self, other: &Platform) -> bool {
        let variant = self.variant.is_empty() || other.variant.is_empty() || self.variant == other.variant;
        self.os == other.os && self.architecture == other.architecture && variant
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

    /// The manifest of an index for a platform.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn choose<'d>(manifests: &'d [Descriptor], platform: &Platform) -> Result<&'d Descriptor> {
        let fits = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(|other| platform.takes(other));
        let only = || manifests.first().filter(|first| manifests.len() == 1 && first.platform.is_none());
        manifests.iter().find(fits).or_else(only).ok_or_else(|| {
            Error::NotFound(format!("no match for platform in manifest: {}/{}", platform.os, platform.architecture))
        })
    }
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
