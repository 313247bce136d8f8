//! A pull: documents from the top down, then the layers of each image, side by side, put on one another at the end.

use std::sync::Arc;

use tare_proto::containerd::types::Descriptor as Target;
use tokio::sync::{Semaphore, watch};

use super::Transfers;
use super::document::{self, Descriptor, Document, chain_ids, diff_ids};
use super::held::{Held, source_key};
use super::layer::{Job, blocking, check_size};
use super::names::{Names, Stored};
use super::platform::Platform;
use super::progress::{Progress, State};
use super::unpack::{Here, Unpack};
use crate::error::{Error, Result};
use crate::gc;
use crate::layer::{self, Applied};
use crate::names::{Digest, Labels, Namespace};
use crate::registry::{Manifest, Options, Reference, Registry};
use crate::snapshot::{OVERLAY, REFERENCE};

/// Layers on their way at once.
const SIDE_BY_SIDE: usize = 4;
/// An index may lie in an index, but not so often.
const DEEPEST: usize = 4;
/// What is read as a whole: a configuration.
const LONGEST: u64 = 4 << 20;

/// What is to be pulled, and how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub reference: String,
    pub names: Names,
    /// Whose layers are wanted; all if there are none.
    pub platforms: Vec<Platform>,
    /// Manifests and configurations of the other platforms too.
    pub all_metadata: bool,
    /// At most so many manifests of an index; 0 is no limit.
    pub most_manifests: usize,
    pub unpacks: Vec<Unpack>,
    pub registry: Options,
}

/// What stays the same on the way down.
struct Pull<'p> {
    transfers: &'p Transfers,
    registry: Arc<Registry>,
    held: Arc<Held>,
    request: &'p Request,
    progress: &'p Progress,
    /// Where everything comes from, as a label.
    source: Labels,
    /// Whose progress it is.
    name: String,
}

impl Transfers {
    /// Pulls an image; whatever is there already is not fetched again.
    ///
    /// # Errors
    /// The registry's, or the disk's. Nothing that looks whole and is not is left.
    pub async fn pull(&self, namespace: &Namespace, request: &Request, progress: &Progress) -> Result<Vec<Stored>> {
        let reference = Reference::parse(&request.reference)?;
        for unpack in &request.unpacks {
            self.snapshots.check(&unpack.snapshotter)?;
        }
        let (of, options) = (reference.clone(), request.registry.clone());
        let registry = Arc::new(blocking(move || Registry::new(&of, &options)).await?);
        let held = Arc::new(self.hold(namespace)?);
        let source = Labels::from([(source_key(&reference.host), reference.repository.clone())]);
        let name = Some(request.names.name.clone()).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| request.reference.clone());
        let pull = Pull { transfers: self, registry, held, request, progress, source, name };

        progress.say(format!("Resolving from OCI Registry ({})", request.reference));
        let top = pull.registry.manifest(reference.object(), reference.digest.as_ref());
        let top = self.unless_ended(top).await?;
        let target = Descriptor {
            media_type: media_type(&top)?,
            digest: top.digest.to_string(),
            size: top.bytes.len() as u64,
            annotations: std::collections::HashMap::new(),
            platform: None,
            urls: Vec::new(),
        };
        if let Some(verifiers) = &self.verifiers {
            self.unless_ended(verifiers.check(&request.reference, &target)).await?;
        }
        progress.say(format!("Pulling from OCI Registry ({})", request.reference));
        pull.tell("fetching image content", &pull.name, None, 0, Some(&target));
        let unpacked = pull.document(&target, top, None, DEEPEST).await?;
        if !request.unpacks.is_empty() && unpacked == 0 {
            let wanted: Vec<String> = request.unpacks.iter().map(|unpack| unpack.platform.to_string()).collect();
            return Err(Error::NotFound(format!("no match for platform in manifest: {}", wanted.join(", "))));
        }
        let names = request.names.of_target(&target.digest);
        let names = if names.is_empty() { vec![request.reference.clone()] } else { names };
        let stored = self.store_names(namespace, names, &request.names.labels, &target)?;
        for stored in &stored {
            pull.tell("saved", &stored.image.name, None, 0, Some(&target));
        }
        progress.say(format!("Completed pull from OCI Registry ({})", request.reference));
        Ok(stored)
    }
}

/// What a document says that it is, where its sender does not.
fn media_type(manifest: &Manifest) -> Result<String> {
    if !matches!(manifest.media_type.as_str(), "" | "application/octet-stream" | "application/json" | "text/plain") {
        return Ok(manifest.media_type.clone());
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: String,
    }
    let typed: Typed = serde_json::from_slice(&manifest.bytes)
        .map_err(|error| Error::InvalidArgument(format!("reading a manifest without a media type: {error}")))?;
    Ok(typed.media_type)
}

impl Pull<'_> {
    fn tell(&self, event: &str, name: &str, parent: Option<&str>, done: u64, what: Option<&Descriptor>) {
        self.progress.tell(State {
            event: event.into(),
            name: name.into(),
            parent: parent.map(str::to_owned),
            done,
            total: what.map_or(0, |what| what.size),
            what: what.map(Target::from),
        });
    }

    /// Keeps a document, after all that it refers to and that is wanted. How often something was unpacked.
    async fn document(
        &self,
        descriptor: &Descriptor,
        manifest: Manifest,
        platform: Option<&Platform>,
        depth: usize,
    ) -> Result<usize> {
        let document = Document::read(&descriptor.media_type, &manifest.bytes)?;
        let unpacked = match &document {
            Document::Index(manifests) => Box::pin(self.index(manifests, depth)).await?,
            Document::Manifest { config, layers } => self.manifest(config, layers, platform).await?,
        };
        let mut labels = document::labels(&document.children());
        labels.extend(self.source.clone());
        let (held, digest) = (self.held.clone(), manifest.digest.clone());
        blocking(move || held.keep(&digest, &manifest.bytes, &labels)).await?;
        self.tell("complete", &descriptor.reference(), Some(&self.name), descriptor.size, Some(descriptor));
        Ok(unpacked)
    }

    async fn index(&self, manifests: &[Descriptor], depth: usize) -> Result<usize> {
        if depth == 0 {
            return Err(Error::InvalidArgument(format!("{}: indexes in indexes", self.request.reference)));
        }
        let request = self.request;
        let wanted = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_none_or(|platform| platform.is_among(&request.platforms))
        };
        let mut chosen: Vec<&Descriptor> = manifests.iter().filter(wanted).collect();
        if request.most_manifests > 0 {
            chosen.truncate(request.most_manifests);
        }
        if chosen.is_empty() && !manifests.is_empty() {
            let asked: Vec<String> = request.platforms.iter().map(Platform::to_string).collect();
            return Err(Error::NotFound(format!("no match for platform in manifest: {}", asked.join(", "))));
        }
        let mut unpacked = 0;
        for descriptor in manifests {
            let taken = chosen.iter().any(|chosen| std::ptr::eq(*chosen, descriptor));
            if !taken && !request.all_metadata {
                continue;
            }
            if !descriptor.is_document() {
                if taken {
                    self.blobs(std::slice::from_ref(descriptor), None).await?;
                }
                continue;
            }
            let manifest = self.fetch_document(descriptor).await?;
            if taken {
                unpacked += self.document(descriptor, manifest, descriptor.platform.as_ref(), depth - 1).await?;
            } else {
                self.metadata(descriptor, manifest).await?;
            }
        }
        Ok(unpacked)
    }

    /// A manifest of a platform that is not wanted, and its configuration.
    async fn metadata(&self, descriptor: &Descriptor, manifest: Manifest) -> Result<()> {
        let document = Document::read(&descriptor.media_type, &manifest.bytes)?;
        if let Document::Manifest { config, .. } = &document {
            self.config(config).await?;
        }
        let mut labels = document::labels(&document.children());
        labels.extend(self.source.clone());
        let (held, digest) = (self.held.clone(), manifest.digest.clone());
        blocking(move || held.keep(&digest, &manifest.bytes, &labels)).await?;
        self.tell("complete", &descriptor.reference(), Some(&self.name), descriptor.size, Some(descriptor));
        Ok(())
    }

    /// A document by its digest: from our own store if it is there.
    async fn fetch_document(&self, descriptor: &Descriptor) -> Result<Manifest> {
        let digest = descriptor.digest()?;
        if let Some(bytes) = self.stored(&digest).await? {
            return Ok(Manifest { media_type: descriptor.media_type.clone(), digest, bytes: bytes.into() });
        }
        let fetched = self.registry.manifest(digest.as_str(), Some(&digest));
        let mut manifest = self.transfers.unless_ended(fetched).await?;
        check_size(descriptor, manifest.bytes.len() as u64, true)?;
        manifest.media_type.clone_from(&descriptor.media_type);
        Ok(manifest)
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let (held, content, digest) = (self.held.clone(), self.transfers.content.clone(), digest.clone());
        let labels = self.source.clone();
        blocking(move || match held.has(&digest, &labels)? {
            true => content.read(&held.namespace, &digest, LONGEST).map(Some),
            false => Ok(None),
        })
        .await
    }

    /// An image is fetched and unpacked where that is wanted; anything else is only fetched.
    async fn manifest(&self, config: &Descriptor, layers: &[Descriptor], platform: Option<&Platform>) -> Result<usize> {
        if !config.is_image_config() {
            let blobs: Vec<Descriptor> = std::iter::once(config).chain(layers).cloned().collect();
            self.blobs(&blobs, None).await?;
            return Ok(self.request.unpacks.len()); // there is nothing that could be unpacked
        }
        let bytes = self.config(config).await?;
        let digest = config.digest()?;
        let own = document::platform(&bytes);
        let platform = platform.unwrap_or(&own);
        let mut snapshotters: Vec<&str> = self
            .request
            .unpacks
            .iter()
            .filter(|unpack| unpack.platform.takes(platform))
            .map(|unpack| unpack.snapshotter.as_str())
            .collect();
        snapshotters.dedup();
        let image = Image { config: digest, layers: layers.to_vec(), diff_ids: diff_ids(&bytes)? };
        image.here(&self.name).check()?;
        let on_the_way = snapshotters.contains(&OVERLAY);
        self.blobs(layers, Some((&image.diff_ids, on_the_way))).await?;
        for snapshotter in &snapshotters {
            let (transfers, held, progress) = (self.transfers.clone(), self.held.clone(), self.progress.clone());
            let (image, snapshotter, name) = (image.clone(), (*snapshotter).to_owned(), self.name.clone());
            blocking(move || transfers.unpack(&held, &snapshotter, &image.here(&name), &progress)).await?;
        }
        Ok(snapshotters.len())
    }

    /// A configuration, as a whole.
    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        if let Some(bytes) = self.stored(&digest).await? {
            self.tell("already exists", &descriptor.reference(), Some(&self.name), descriptor.size, Some(descriptor));
            return Ok(bytes);
        }
        if descriptor.size > LONGEST {
            return Err(Error::ResourceExhausted(format!(
                "the configuration {digest} has {} bytes, at most {LONGEST} are read",
                descriptor.size
            )));
        }
        let bytes = self.transfers.unless_ended(self.fetch_config(descriptor, &digest)).await?;
        let (held, labels, kept) = (self.held.clone(), self.source.clone(), bytes.clone());
        blocking(move || held.keep(&digest, &kept, &labels)).await?;
        self.tell("complete", &descriptor.reference(), Some(&self.name), descriptor.size, Some(descriptor));
        Ok(bytes)
    }

    async fn fetch_config(&self, descriptor: &Descriptor, digest: &Digest) -> Result<Vec<u8>> {
        let mut blob = self.registry.blob(digest, 0, &descriptor.urls).await?;
        let mut bytes = Vec::new();
        while let Some(more) = blob.next().await? {
            bytes.extend_from_slice(&more);
            check_size(descriptor, bytes.len() as u64, false)?;
        }
        check_size(descriptor, bytes.len() as u64, true)?;
        let found = digest.same_kind(&bytes);
        if found != *digest {
            return Err(Error::FailedPrecondition(format!("the configuration's digest is {found}, not {digest}")));
        }
        Ok(bytes)
    }

    /// Fetches blobs, several at a time; with their digests unpacked they are layers, which may be unpacked on their way and
    /// are then put on one another in order.
    async fn blobs(&self, blobs: &[Descriptor], layers: Option<(&[Digest], bool)>) -> Result<()> {
        let chain = layers.map_or_else(Vec::new, |(diff_ids, _)| chain_ids(diff_ids));
        let room = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        let (stop, stopped) = watch::channel(false);
        let mut running = tokio::task::JoinSet::new();
        let mut unpacked: Vec<Option<Applied>> = vec![None; blobs.len()];
        for (n, descriptor) in blobs.iter().enumerate() {
            let job =
                self.job(descriptor, layers.map(|(diff_ids, unpack)| (&diff_ids[n], unpack, &chain[n])), n, &stopped)?;
            job.tell("waiting", 0);
            let room = room.clone();
            running.spawn(async move {
                let _place = room.acquire_owned().await;
                job.run().await.map(|applied| (n, applied))
            });
        }
        let mut failed = None;
        while let Some(ended) = running.join_next().await {
            match ended.map_err(|error| Error::Internal(format!("a layer's task: {error}"))).and_then(|ended| ended) {
                Ok((n, applied)) => unpacked[n] = applied,
                Err(error) => {
                    // The others end by themselves, and are waited for: what their threads hold is put away when they have ended.
                    stop.send_replace(true);
                    failed.get_or_insert(error);
                }
            }
        }
        let (transfers, held) = (self.transfers.clone(), self.held.clone());
        blocking(move || match failed {
            None => transfers.stack(&held, &chain, &unpacked),
            Some(error) => {
                for n in 0..unpacked.len() {
                    let _ = transfers.snapshots.remove(&held.namespace, OVERLAY, &key(&held, n)); // most were never made
                }
                Err(error)
            }
        })
        .await
    }

    fn job(
        &self,
        descriptor: &Descriptor,
        layer: Option<(&Digest, bool, &Digest)>,
        n: usize,
        stopped: &watch::Receiver<bool>,
    ) -> Result<Job> {
        let ns = &self.held.namespace;
        let digest = descriptor.digest()?;
        let mut key_of_snapshot = None;
        self.held.things(&[gc::content(&digest)])?;
        if let Some((_, true, chain_id)) = layer {
            let snapshot = format!("snapshots/{OVERLAY}");
            self.held.things(&[(snapshot.as_str(), key(&self.held, n)), (snapshot.as_str(), chain_id.to_string())])?;
            let there = self.transfers.snapshots.info(ns, OVERLAY, chain_id.as_str()).is_ok();
            key_of_snapshot = (!there).then(|| key(&self.held, n));
        }
        Ok(Job {
            transfers: self.transfers.clone(),
            registry: self.registry.clone(),
            held: self.held.clone(),
            descriptor: descriptor.clone(),
            digest,
            diff_id: layer.map(|(diff_id, ..)| diff_id.clone()),
            key: key_of_snapshot,
            labels: self.source.clone(),
            parent: self.name.clone(),
            progress: self.progress.clone(),
            stopped: stopped.clone(),
        })
    }
}

/// An image of a pull.
#[derive(Clone)]
struct Image {
    config: Digest,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl Image {
    fn here<'h>(&'h self, name: &'h str) -> Here<'h> {
        Here { config: &self.config, layers: &self.layers, diff_ids: &self.diff_ids, name }
    }
}

/// A layer's snapshot, while it is unpacked.
fn key(held: &Held, n: usize) -> String {
    format!("{}-{n}", held.lease)
}

impl Transfers {
    /// Commits the layers that were unpacked on their way in order, each on the one below.
    fn stack(&self, held: &Held, chain: &[Digest], unpacked: &[Option<Applied>]) -> Result<()> {
        let ns = &held.namespace;
        let mut parent = String::new();
        for (n, chain_id) in chain.iter().enumerate() {
            let name = chain_id.to_string();
            if let Some(applied) = &unpacked[n] {
                let key = key(held, n);
                let row = self.snapshots.row(ns, OVERLAY, &key)?;
                let lower = if parent.is_empty() { Vec::new() } else { self.snapshots.chain(ns, &parent)? };
                layer::settle(&self.snapshots.layer(row.number), applied, &lower)?;
                let labels = Labels::from([(REFERENCE.into(), name.clone())]);
                match self.snapshots.commit(ns, OVERLAY, &name, &key, &labels, Some(&parent)) {
                    Err(Error::AlreadyExists(_)) => self.snapshots.remove(ns, OVERLAY, &key)?, // another pull was faster
                    answer => answer?,
                }
            }
            parent = name;
        }
        Ok(())
    }
}
