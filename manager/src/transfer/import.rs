//! An archive's images: an OCI layout, or what `docker save` writes. Read once, from its beginning to its end.
//!
//! Source: image-spec image-layout.md; moby image/spec, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Transfers;
use super::document::{self, Descriptor, Document, diff_ids};
use super::held::Held;
use super::names::{IMAGE_NAME, Names, REF_NAME, Stored};
use super::platform::Platform;
use super::progress::{Progress, State};
use super::unpack::{Here, Unpack};
use super::written::{Index, Manifest, Reference as Written, json};
use crate::error::{Doing as _, Error, Result};
use crate::layer::archive::Archive;
use crate::layer::entry::{Entry, Kind, cleaned};
use crate::names::{Digest, Labels, Namespace};
use crate::registry::Reference;

/// The archive's own documents, and manifests, are read as a whole.
const LONGEST: u64 = 4 << 20;
/// Members beyond this no image has.
const MOST_MEMBERS: usize = 100_000;
const DEEPEST: usize = 4;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// What is to become of an archive.
#[derive(Debug, Clone, Default)]
pub struct Import {
    pub names: Names,
    /// Whose images are taken; all if there are none.
    pub platforms: Vec<Platform>,
    pub unpacks: Vec<Unpack>,
    /// Layers that come unpacked are packed.
    pub compress: bool,
}

/// What an archive brought along.
#[derive(Default)]
struct Members {
    index: Option<Vec<u8>>,
    /// docker's `manifest.json`.
    manifest: Option<Vec<u8>>,
    /// By the names that `manifest.json` uses.
    files: HashMap<PathBuf, Descriptor>,
    links: HashMap<PathBuf, PathBuf>,
}

impl Transfers {
    /// Takes an archive's images in; `stream` is read to its end. Waits for the disk.
    ///
    /// # Errors
    /// The archive is malformed, or a part is missing in it.
    pub fn import(
        &self,
        namespace: &Namespace,
        import: &Import,
        stream: impl Read,
        progress: &Progress,
    ) -> Result<Vec<Stored>> {
        progress.say("Importing");
        let held = self.hold(namespace)?;
        let members = self.members(&held, stream)?;
        let index = match (&members.index, &members.manifest) {
            (Some(index), _) => index.clone(),
            (None, Some(manifest)) => self.translated(&held, manifest, &members, import)?,
            (None, None) => {
                let why = "has neither index.json nor manifest.json: it is no archive of images";
                return Err(Error::InvalidArgument(format!("the archive {why}")));
            }
        };
        let Document::Index(manifests) = Document::read(INDEX, &index)? else {
            return Err(Error::InvalidArgument("the archive's index.json is no index".into()));
        };
        for manifest in &manifests {
            self.settle(&held, manifest, import, None, progress, DEEPEST)?;
        }
        let stored = self.store_members(&held, import, &index, &manifests)?;
        for stored in &stored {
            progress.tell(State {
                event: "saved".into(),
                name: stored.image.name.clone(),
                parent: None,
                done: 0,
                total: 0,
                what: stored.image.target.clone(),
            });
        }
        progress.say("Completed import");
        Ok(stored)
    }

    fn members(&self, held: &Held, stream: impl Read) -> Result<Members> {
        let mut archive = Archive::new(crate::layer::plain(stream)?);
        let mut members = Members::default();
        while let Some(entry) = archive.next()? {
            let path = cleaned(&entry.path)?;
            if members.files.len() + members.links.len() > MOST_MEMBERS {
                return Err(Error::InvalidArgument(format!("the archive has more than {MOST_MEMBERS} members")));
            }
            match entry.kind {
                Kind::File if path == Path::new("index.json") => members.index = Some(whole(&entry, &mut archive)?),
                Kind::File if path == Path::new("manifest.json") => {
                    members.manifest = Some(whole(&entry, &mut archive)?);
                }
                Kind::File if path == Path::new("oci-layout") => check_layout(&whole(&entry, &mut archive)?)?,
                Kind::File => {
                    let descriptor = self.member(held, &path, &entry, &mut archive)?;
                    members.files.insert(path, descriptor);
                }
                // docker's archives name a layer that two images share once, and link to it.
                Kind::Symlink | Kind::Link => {
                    let folder =
                        if entry.kind == Kind::Link { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
                    if let Some(target) = normal(&folder.join(&entry.link)) {
                        members.links.insert(path, target);
                    }
                }
                _ => {}
            }
        }
        io::copy(&mut archive.into_inner(), &mut io::sink()).doing(|| "reading the archive".into())?;
        Ok(members)
    }

    /// Any other member is a blob; one whose name says a digest must have it.
    fn member(&self, held: &Held, path: &Path, entry: &Entry, content: &mut impl Read) -> Result<Descriptor> {
        let expected = named_digest(path);
        let known = match &expected {
            Some(digest) => held.has(digest, &Labels::new())?,
            None => false,
        };
        let mut descriptor = Descriptor {
            media_type: String::new(),
            digest: String::new(),
            size: entry.size,
            annotations: HashMap::new(),
            platform: None,
            urls: Vec::new(),
        };
        if let (Some(digest), true) = (&expected, known) {
            descriptor.digest = digest.to_string();
            return Ok(descriptor);
        }
        let reference = format!("{}-{}", held.lease, path.display());
        held.things(&[("ingests", reference.clone())])?;
        let mut writer = self.content.writer(&held.namespace, &reference, entry.size, expected.as_ref())?;
        writer.restart()?;
        io::copy(content, &mut writer).doing(|| format!("importing {}", path.display()))?;
        let digest = writer.digest();
        held.things(&[crate::gc::content(&digest)])?;
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            writer.discard()?;
            return Err(Error::FailedPrecondition(format!("the archive's {expected} has the digest {digest}")));
        }
        match writer.commit(entry.size, Some(&digest), &Labels::new()) {
            Ok(_) | Err(Error::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
        descriptor.digest = digest.to_string();
        Ok(descriptor)
    }

    /// An index of the images that docker's `manifest.json` names, each with a manifest of its own.
    fn translated(&self, held: &Held, manifest: &[u8], members: &Members, import: &Import) -> Result<Vec<u8>> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: PathBuf,
            repo_tags: Option<Vec<String>>,
            layers: Vec<PathBuf>,
        }
        let saved: Vec<Saved> = serde_json::from_slice(manifest)
            .map_err(|error| Error::InvalidArgument(format!("reading the archive's manifest.json: {error}")))?;
        let mut manifests = Vec::new();
        for saved in saved {
            let config = members.find(&saved.config)?;
            let bytes = self.content.read(&held.namespace, &config.digest()?, LONGEST)?;
            let platform = document::platform(&bytes);
            let mut layers = Vec::new();
            for layer in &saved.layers {
                layers.push(self.docker_layer(held, members.find(layer)?, import.compress)?);
            }
            let text = json(&Manifest {
                schema_version: 2,
                media_type: DOCKER_MANIFEST,
                config: Written::new(DOCKER_CONFIG, &config.digest, config.size),
                layers,
            });
            let digest = Digest::of(text.as_bytes());
            held.keep(&digest, text.as_bytes(), &Labels::new())?;
            let mut described = Written::new(DOCKER_MANIFEST, digest.as_str(), text.len() as u64);
            described.platform = Some((&platform).into());
            let tags = saved.repo_tags.unwrap_or_default();
            if tags.is_empty() {
                manifests.push(described.clone());
            }
            for tag in tags {
                let name = Reference::complete(&tag)?;
                let short = name.rsplit(':').next().unwrap_or_default().to_owned();
                described.annotations = [(IMAGE_NAME.to_owned(), name), (REF_NAME.to_owned(), short)].into();
                manifests.push(described.clone());
            }
        }
        Ok(json(&Index::of(&manifests)).into_bytes())
    }

    fn docker_layer(&self, held: &Held, layer: &Descriptor, compress: bool) -> Result<Written> {
        let ns = &held.namespace;
        let mut blob = self.content.reader(ns, &layer.digest()?)?;
        let mut magic = Vec::new();
        (&mut blob).take(4).read_to_end(&mut magic).doing(|| format!("reading {}", layer.digest))?;
        let (suffix, digest, size) = match magic.as_slice() {
            [0x1f, 0x8b, ..] => (".gzip", layer.digest.clone(), layer.size),
            [0x28, 0xb5, 0x2f, 0xfd] => (".zstd", layer.digest.clone(), layer.size),
            _ if compress => {
                let (digest, size) = self.packed(held, layer)?;
                (".gzip", digest.to_string(), size)
            }
            _ => ("", layer.digest.clone(), layer.size),
        };
        Ok(Written::new(format!("{DOCKER_LAYER}{suffix}"), digest, size))
    }

    fn packed(&self, held: &Held, layer: &Descriptor) -> Result<(Digest, u64)> {
        let ns = &held.namespace;
        let doing = || format!("packing {}", layer.digest);
        let reference = format!("{}-packed-{}", held.lease, layer.digest);
        let mut writer = self.content.writer(ns, &reference, 0, None)?;
        writer.restart()?;
        let mut gzip = flate2::write::GzEncoder::new(&mut writer, flate2::Compression::default());
        io::copy(&mut self.content.reader(ns, &layer.digest()?)?, &mut gzip).doing(doing)?;
        gzip.finish().doing(doing)?;
        let (digest, size) = (writer.digest(), writer.status().offset);
        held.things(&[crate::gc::content(&digest)])?;
        let labels = Labels::from([("containerd.io/uncompressed".into(), layer.digest.clone())]);
        match writer.commit(size, None, &labels) {
            Ok(_) | Err(Error::AlreadyExists(_)) => Ok((digest, size)),
            Err(error) => Err(error),
        }
    }

    /// Checks that what is wanted of a document is here, and ties it to the document; unpacks images.
    fn settle(
        &self,
        held: &Held,
        descriptor: &Descriptor,
        import: &Import,
        platform: Option<&Platform>,
        progress: &Progress,
        depth: usize,
    ) -> Result<()> {
        if depth == 0 {
            return Err(Error::InvalidArgument("the archive has indexes in indexes".into()));
        }
        let digest = descriptor.digest()?;
        if !held.has(&digest, &Labels::new())? {
            return Err(Error::NotFound(format!("the archive's content {digest}")));
        }
        if !descriptor.is_document() {
            return Ok(());
        }
        let bytes = self.content.read(&held.namespace, &digest, LONGEST)?;
        let document = Document::read(&descriptor.media_type, &bytes)?;
        match &document {
            Document::Index(manifests) => {
                for child in manifests {
                    let platform = child.platform.as_ref();
                    // An archive of one platform has the index of all.
                    if platform.is_none_or(|platform| platform.is_among(&import.platforms)) {
                        self.settle(held, child, import, platform, progress, depth - 1)?;
                    }
                }
            }
            Document::Manifest { config, layers } => {
                for blob in std::iter::once(config).chain(layers) {
                    let there = held.has(&blob.digest()?, &Labels::new())?;
                    if !there && !blob.is_foreign() {
                        return Err(Error::NotFound(format!("the archive's content {}", blob.digest)));
                    }
                }
                if config.is_image_config() && !import.unpacks.is_empty() {
                    self.unpack_member(held, (config, layers), import, platform, progress)?;
                }
            }
        }
        held.relabel(&digest, &document::labels(&document.children()))
    }

    fn unpack_member(
        &self,
        held: &Held,
        (config, layers): (&Descriptor, &[Descriptor]),
        import: &Import,
        platform: Option<&Platform>,
        progress: &Progress,
    ) -> Result<()> {
        let digest = config.digest()?;
        let bytes = self.content.read(&held.namespace, &digest, LONGEST)?;
        let own = document::platform(&bytes);
        let platform = platform.unwrap_or(&own);
        let diff_ids = diff_ids(&bytes)?;
        let image = Here { config: &digest, layers, diff_ids: &diff_ids, name: digest.as_str() };
        for unpack in import.unpacks.iter().filter(|unpack| unpack.platform.takes(platform)) {
            self.unpack(held, &unpack.snapshotter, &image, progress)?;
        }
        Ok(())
    }

    fn store_members(
        &self,
        held: &Held,
        import: &Import,
        index: &[u8],
        manifests: &[Descriptor],
    ) -> Result<Vec<Stored>> {
        let (ns, names) = (&held.namespace, &import.names);
        let mut stored = Vec::new();
        let own = Digest::of(index);
        let of_index = names.of_target(own.as_str());
        if !of_index.is_empty() {
            held.keep(&own, index, &document::labels(manifests))?;
            let target = Descriptor {
                media_type: INDEX.into(),
                digest: own.to_string(),
                size: index.len() as u64,
                annotations: HashMap::new(),
                platform: None,
                urls: Vec::new(),
            };
            stored.extend(self.store_names(ns, of_index, &names.labels, &target)?);
        }
        let mut by_name: BTreeMap<String, &Descriptor> = BTreeMap::new();
        for manifest in manifests {
            for name in names.of_member(&manifest.annotations, &manifest.digest) {
                by_name.insert(name, manifest);
            }
        }
        for (name, manifest) in by_name {
            stored.extend(self.store_names(ns, vec![name], &names.labels, manifest)?);
        }
        if stored.is_empty() {
            tracing::info!("an archive was imported that names no image of those that were asked for");
        }
        Ok(stored)
    }
}

impl Members {
    /// A file by the name that `manifest.json` has for it.
    fn find(&self, name: &Path) -> Result<&Descriptor> {
        let mut path = cleaned(name)?;
        for _ in 0..10 {
            if let Some(found) = self.files.get(&path) {
                return Ok(found);
            }
            let Some(target) = self.links.get(&path) else { break };
            path.clone_from(target);
        }
        Err(Error::NotFound(format!("the archive's file {}", name.display())))
    }
}

fn whole(entry: &Entry, content: &mut impl Read) -> Result<Vec<u8>> {
    if entry.size > LONGEST {
        return Err(Error::ResourceExhausted(format!(
            "the archive's {} has {} bytes, at most {LONGEST} are read",
            entry.path.display(),
            entry.size
        )));
    }
    let mut bytes = Vec::new();
    content.read_to_end(&mut bytes).doing(|| format!("reading the archive's {}", entry.path.display()))?;
    Ok(bytes)
}

fn check_layout(text: &[u8]) -> Result<()> {
    let layout: serde_json::Value = serde_json::from_slice(text)
        .map_err(|error| Error::InvalidArgument(format!("reading the archive's oci-layout: {error}")))?;
    match layout["imageLayoutVersion"].as_str() {
        Some("1.0.0") => Ok(()),
        version => Err(Error::InvalidArgument(format!("the archive's layout is of version {version:?}, not 1.0.0"))),
    }
}

/// `blobs/sha256/HEX`
fn named_digest(path: &Path) -> Option<Digest> {
    let mut parts = path.iter().map(|part| part.to_str().unwrap_or_default());
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("blobs"), Some(algorithm), Some(hex), None) => Digest::parse(&format!("{algorithm}:{hex}")).ok(),
        _ => None,
    }
}

/// A relative path without `..`; none if it leads out.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => normal.pop().then_some(())?,
            std::path::Component::Normal(part) => normal.push(part),
            _ => {}
        }
    }
    Some(normal)
}
