//! Documents that we write, field by field in the order in which containerd writes them: the same image gives the same digest.
//!
//! Source: image-spec manifest.md, image-index.md; moby image/spec.

use std::collections::BTreeMap;

use serde::Serialize;

use super::platform::Platform;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Written>,
}

impl Reference {
    pub fn new(media_type: impl Into<String>, digest: impl Into<String>, size: u64) -> Reference {
        let (media_type, digest) = (media_type.into(), digest.into());
        Reference { media_type, digest, size, annotations: BTreeMap::new(), platform: None }
    }
}

/// A platform.
#[derive(Debug, Clone, Serialize)]
pub struct Written {
    architecture: String,
    os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

impl From<&Platform> for Written {
    fn from(platform: &Platform) -> Written {
        let Platform { os, architecture, variant } = platform.clone();
        Written { architecture, os, variant }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index<'i> {
    schema_version: u8,
    media_type: &'static str,
    manifests: &'i [Reference],
}

impl<'i> Index<'i> {
    pub fn of(manifests: &'i [Reference]) -> Index<'i> {
        Index { schema_version: 2, media_type: "application/vnd.oci.image.index.v1+json", manifests }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u8,
    pub media_type: &'static str,
    pub config: Reference,
    pub layers: Vec<Reference>,
}

/// An image in docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    pub config: String,
    pub repo_tags: Vec<String>,
    pub layers: Vec<String>,
}

/// What is written has text for keys and nothing that JSON could not say.
pub fn json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("strings, numbers and lists of them are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_containerds_order_and_empty_ones_not_at_all() {
        let mut image = Reference::new("m", "sha256:d", 3);
        let plain = json(&Index::of(std::slice::from_ref(&image)));
        let head = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#;
        assert_eq!(plain, format!(r#"{head}{{"mediaType":"m","digest":"sha256:d","size":3}}]}}"#));
        image.annotations.insert("a".into(), "b".into());
        let platform = Platform { os: "linux".into(), architecture: "arm".into(), variant: "v7".into() };
        image.platform = Some(Written::from(&platform));
        let full = r#"{"mediaType":"m","digest":"sha256:d","size":3,"annotations":{"a":"b"},"platform":{"architecture":"arm","os":"linux","variant":"v7"}}"#;
        assert_eq!(json(&image), full);
        let saved = Saved { config: "c".into(), repo_tags: vec!["t".into()], layers: vec!["l".into()] };
        assert_eq!(json(&[saved]), r#"[{"Config":"c","RepoTags":["t"],"Layers":["l"]}]"#);
    }
}
