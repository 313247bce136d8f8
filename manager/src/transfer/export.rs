//! Images as an archive: an OCI layout, with docker's `manifest.json` beside it for who knows only that. The same images
//! give the same bytes.
//!
//! Source: image-spec image-layout.md; moby image/spec.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::Transfers;
use super::document::{self, Descriptor, Document};
use super::held::SOURCE;
use super::names::{IMAGE_NAME, REF_NAME};
use super::platform::Platform;
use super::written::{Index, Reference, Saved, json};
use crate::error::{Doing as _, Error, Result};
use crate::layer::entry::{Entry, Kind};
use crate::layer::write::Writer;
use crate::names::Namespace;

const LONGEST: u64 = 4 << 20;
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// What is to be written.
#[derive(Debug, Clone, Default)]
pub struct Export {
    pub names: Vec<String>,
    /// Of an index, the images for these; all if there are none.
    pub platforms: Vec<Platform>,
    pub without_docker: bool,
    pub without_foreign: bool,
}

#[derive(Default)]
struct Parts {
    /// By digest: each blob once.
    blobs: BTreeMap<String, u64>,
    index: Vec<Reference>,
    /// For `manifest.json`: the manifest's configuration and layers with its names, in the order of the images.
    docker: Vec<(String, Vec<String>, Vec<String>)>,
}

impl Transfers {
    /// Writes images to `out`. Waits for the disk.
    ///
    /// # Errors
    /// `NotFound`: an image, or a part of it, is not here.
    pub fn export(&self, namespace: &Namespace, export: &Export, out: impl Write) -> Result<()> {
        if export.names.is_empty() {
            return Err(Error::InvalidArgument("no image to export".into()));
        }
        let mut parts = Parts::default();
        for name in &export.names {
            self.collect(namespace, name, export, &mut parts)?;
        }
        let doing = || "writing the archive".to_owned();
        let mut writer = Writer::new(io::BufWriter::with_capacity(32 << 10, out));
        let mut folders = std::collections::BTreeSet::from(["blobs".to_owned()]);
        folders.extend(parts.blobs.keys().filter_map(|digest| Some(format!("blobs/{}", digest.split_once(':')?.0))));
        for folder in folders {
            let mut entry = Entry::new(folder.into(), Kind::Folder);
            entry.mode = 0o755;
            writer.entry(&entry, &mut io::empty()).doing(doing)?;
        }
        for (digest, size) in &parts.blobs {
            let digest = crate::names::Digest::parse(digest)?;
            let mut blob = self.content.reader(namespace, &digest)?;
            file(&mut writer, &path(digest.as_str()), *size, &mut blob).doing(doing)?;
        }
        let index = json(&Index::of(&parts.index));
        let docker = parts.docker.into_iter().map(|(config, layers, repo_tags)| Saved { config, repo_tags, layers });
        let docker = json(&docker.collect::<Vec<_>>());
        let mut members = vec![("index.json", index.as_str())];
        if !export.without_docker {
            members.push(("manifest.json", &docker));
        }
        members.push(("oci-layout", LAYOUT));
        for (name, text) in members {
            file(&mut writer, name, text.len() as u64, &mut text.as_bytes()).doing(doing)?;
        }
        writer.end().and_then(|mut out| out.flush()).doing(doing)
    }

    fn collect(&self, namespace: &Namespace, name: &str, export: &Export, parts: &mut Parts) -> Result<()> {
        let target = self.image(namespace, name)?.target.unwrap_or_default();
        let target = Descriptor::from(&target);
        let mut annotations = target.annotations.clone();
        let known = self.content.info(namespace, &target.digest()?)?.labels;
        annotations.extend(known.into_iter().filter(|(key, _)| key.starts_with(SOURCE)));
        annotations.insert(IMAGE_NAME.into(), name.into());
        if let Some(tag) = tag_of(name) {
            annotations.insert(REF_NAME.into(), tag.into());
        }
        let mut described = Reference::new(&target.media_type, &target.digest, target.size);
        described.annotations = annotations.into_iter().collect();
        parts.index.push(described);
        let mut waiting = vec![target];
        while let Some(descriptor) = waiting.pop() {
            let digest = descriptor.digest()?;
            if descriptor.is_foreign() && (export.without_foreign || self.content.info(namespace, &digest).is_err()) {
                continue;
            }
            let size = self.content.info(namespace, &digest)?.size.unsigned_abs();
            parts.blobs.insert(digest.to_string(), size);
            if !descriptor.is_document() {
                continue;
            }
            match Document::read(&descriptor.media_type, &self.content.read(namespace, &digest, LONGEST)?)? {
                Document::Index(manifests) => {
                    let wanted = |child: &Descriptor| {
                        child.platform.as_ref().is_none_or(|other| other.is_among(&export.platforms))
                    };
                    let chosen: Vec<Descriptor> = manifests.into_iter().filter(wanted).collect();
                    if chosen.is_empty() {
                        let asked: Vec<String> = export.platforms.iter().map(Platform::to_string).collect();
                        return Err(Error::NotFound(format!("image {name:?} for {}", asked.join(", "))));
                    }
                    waiting.extend(chosen);
                }
                Document::Manifest { config, layers } => {
                    if config.is_image_config() {
                        self.note_for_docker(namespace, name, &config, &layers, parts)?;
                    }
                    waiting.push(config);
                    waiting.extend(layers);
                }
            }
        }
        Ok(())
    }

    /// docker reads images for one platform only: this machine's, or the first.
    fn note_for_docker(
        &self,
        namespace: &Namespace,
        name: &str,
        config: &Descriptor,
        layers: &[Descriptor],
        parts: &mut Parts,
    ) -> Result<()> {
        let tag = short(name);
        let own =
            Platform::own().takes(&document::platform(&self.content.read(namespace, &config.digest()?, LONGEST)?));
        let layers: Vec<String> = layers.iter().map(|layer| path(&layer.digest)).collect();
        let config = path(&config.digest);
        if let Some((.., tags)) =
            parts.docker.iter_mut().find(|(known, known_layers, _)| *known == config && *known_layers == layers)
        {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
            return Ok(());
        }
        match parts.docker.iter_mut().find(|(.., tags)| tags.contains(&tag)) {
            Some(known) if own => *known = (config, layers, vec![tag]),
            Some(_) => {}
            None => parts.docker.push((config, layers, vec![tag])),
        }
        Ok(())
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn file<W: Write>(writer: &mut Writer<W>, name: &str, size: u64, content: &mut impl Read) -> io::Result<()> {
    let mut entry = Entry::new(name.into(), Kind::File);
    (entry.mode, entry.size) = (0o444, size);
    writer.entry(&entry, content)
}

fn tag_of(name: &str) -> Option<&str> {
    let name = name.split('@').next().unwrap_or_default();
    name.rsplit('/').next().and_then(|last| last.rsplit_once(':')).map(|(_, tag)| tag)
}

/// As docker says it: without what it adds by itself.
fn short(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let rest = name.strip_prefix("docker.io/").unwrap_or(name);
    match rest.strip_prefix("library/") {
        Some(short) if rest != name => short.to_owned(),
        _ => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_docker_says_them() {
        for (name, expected, tag) in [
            ("docker.io/library/busybox:1", "busybox:1", Some("1")),
            ("docker.io/me/app:latest", "me/app:latest", Some("latest")),
            ("127.0.0.1:5000/library/a:b", "127.0.0.1:5000/library/a:b", Some("b")),
            ("127.0.0.1:5000/a@sha256:x", "127.0.0.1:5000/a", None),
        ] {
            assert_eq!((short(name).as_str(), tag_of(name)), (expected, tag));
        }
    }
}
