//! A manifest, an index or an image's configuration is refused with a sentence, or names its parts by digests.

use tare_manager::transfer::{Document, Platform, chain_ids, diff_ids};

const TYPES: &[&str] = &[
    "",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

pub fn try_input(input: &[u8]) {
    let read: Vec<_> = TYPES.iter().map(|media_type| Document::read(media_type, input)).collect();
    for answer in &read {
        match answer {
            Ok(Document::Index(manifests)) => match Document::choose(manifests, &Platform::own()) {
                Ok(chosen) => drop(chosen.digest()),
                Err(error) => super::assert_sentence(&error.to_string()),
            },
            Ok(Document::Manifest { config, layers }) => {
                for descriptor in layers.iter().chain([config]) {
                    if let Err(error) = descriptor.digest() {
                        super::assert_sentence(&error.to_string());
                    }
                }
            }
            Err(error) => super::assert_sentence(&error.to_string()),
        }
    }
    let index = read.iter().any(|answer| matches!(answer, Ok(Document::Index(_))));
    let manifest = read.iter().any(|answer| matches!(answer, Ok(Document::Manifest { .. })));
    assert!(!(index && manifest), "one text is an index and a manifest");
    match diff_ids(input) {
        Ok(ids) => assert_eq!(chain_ids(&ids).len(), ids.len()),
        Err(error) => super::assert_sentence(&error.to_string()),
    }
}
