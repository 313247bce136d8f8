//! A pull is one pass: bytes go from the socket through the digest into a file, the decompressor and the unpacker while they
//! are in the cache. Layers come side by side and are put on one another at the end.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use tare_proto::containerd::services::images::v1::Image;
use tare_proto::containerd::services::leases::v1::Lease;
use tare_proto::containerd::types::Descriptor as Target;
use tokio::sync::{Semaphore, mpsc, watch};

use super::document::{Descriptor, Document, Platform, chain_ids, diff_ids};
use crate::content::{Content, Writer};
use crate::error::{Error, Result};
use crate::gc;
use crate::layer::{self, Applied, Removals};
use crate::names::{Digest, Labels, Namespace};
use crate::registry::{Reference, Registry};
use crate::snapshot::{OVERLAY, Snapshots};
use crate::store::{Store, kind};

/// Layers on their way at once.
const SIDE_BY_SIDE: usize = 4;
/// How often a broken connection is made again for one blob.
const ATTEMPTS: usize = 5;
/// Pieces of a blob between the network and the disk.
const PIPE: usize = 32;

/// What is to be pulled, and how.
#[derive(Debug, Clone)]
pub struct Request {
    pub reference: String,
    /// The name that the image gets.
    pub name: String,
    pub labels: Labels,
    pub platform: Platform,
    /// `http` or `https`; by default what suits the host.
    pub scheme: Option<String>,
    pub unpack: bool,
}

/// How far something has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// `waiting`, `downloading`, `extracting`, `complete`, `saved`.
    pub event: &'static str,
    pub name: String,
    pub parent: Option<String>,
    pub done: u64,
    pub total: u64,
}

/// What was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: Image,
    pub new: bool,
}

/// Pulls into these stores.
#[derive(Clone)]
pub struct Puller {
    pub store: Store,
    pub content: Content,
    pub snapshots: Snapshots,
}

/// A lease of our own for the time of one pull.
struct Held<'p> {
    puller: &'p Puller,
    namespace: Namespace,
    lease: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = gc::release(&self.puller.store, &self.namespace, &self.lease) {
            tracing::warn!("ending the lease {} of a pull: {error}; it expires in a day", self.lease);
        }
    }
}

impl Puller {
    /// Pulls an image; whatever is there already is not fetched again.
    ///
    /// # Errors
    /// The registry's, or the disk's. Nothing that looks whole and is not is left.
    pub async fn pull(
        &self,
        namespace: &Namespace,
        request: &Request,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Pulled> {
        let reference = Reference::parse(&request.reference)?;
        let registry = Arc::new(Registry::new(&reference, request.scheme.as_deref())?);
        let held = self.hold(namespace)?;
        let source = ("containerd.io/distribution.source.".to_owned() + &reference.host, reference.repository.clone());

        let top = registry.manifest(reference.object(), reference.digest.as_ref()).await?;
        let target = Target {
            media_type: top.media_type.clone(),
            digest: top.digest.to_string(),
            size: top.bytes.len().cast_signed() as i64,
            ..Target::default()
        };
        let manifest = match Document::read(&top.media_type, &top.bytes)? {
            Document::Manifest { .. } => top.clone(),
            Document::Index(manifests) => {
                let chosen = Document::choose(&manifests, &request.platform)?;
                let digest = chosen.digest()?;
                let manifest = registry.manifest(digest.as_str(), Some(&digest)).await?;
                let mut labels = Labels::from([source.clone()]);
                for (n, other) in manifests.iter().enumerate() {
                    labels.insert(format!("containerd.io/gc.ref.content.m.{n}"), other.digest.clone());
                }
                self.keep(&held, &top.digest, &top.bytes, &labels)?;
                manifest
            }
        };
        let Document::Manifest { config, layers } = Document::read(&manifest.media_type, &manifest.bytes)? else {
            return Err(Error::InvalidArgument(format!("{}: an index in an index", request.reference)));
        };
        tell(&progress, "resolved", &request.name, None, 0, 0);

        let config_bytes = self.document(&registry, &held, &config, &source).await?;
        let diff_ids = diff_ids(&config_bytes)?;
        if diff_ids.len() != layers.len() {
            return Err(Error::InvalidArgument(format!(
                "{}: {} layers, and the configuration has {}",
                request.reference,
                layers.len(),
                diff_ids.len()
            )));
        }
        self.layers(&registry, &held, &layers, &diff_ids, &source, request, &progress).await?;

        let mut labels = Labels::from([source, ("containerd.io/gc.ref.content.config".into(), config.digest.clone())]);
        for (n, layer) in layers.iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone());
        }
        self.keep(&held, &manifest.digest, &manifest.bytes, &labels)?;
        if request.unpack
            && let Some(last) = chain_ids(&diff_ids).last()
        {
            let label = (format!("containerd.io/gc.ref.snapshot.{OVERLAY}"), last.to_string());
            self.content.update(namespace, &config.digest()?, |labels| {
                labels.insert(label.0, label.1);
                Ok(())
            })?;
        }
        let pulled = self.name(namespace, request, target)?;
        tell(&progress, "saved", &request.name, None, 0, 0);
        Ok(pulled)
    }

    fn hold(&self, namespace: &Namespace) -> Result<Held<'_>> {
        let now = SystemTime::now();
        let nanos = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let lease = format!("pull-{nanos}");
        let expire = humantime::format_rfc3339_seconds(now + std::time::Duration::from_secs(24 * 3600)).to_string();
        let labels = Labels::from([("containerd.io/gc.expire".into(), expire)]);
        let row = Lease { id: lease.clone(), created_at: Some(now.into()), labels };
        self.store.change(|rows| rows.put(kind::LEASE, namespace, &lease, &row))?;
        Ok(Held { puller: self, namespace: namespace.clone(), lease })
    }

    /// Keeps bytes that are in memory as a blob.
    fn keep(&self, held: &Held<'_>, digest: &Digest, bytes: &[u8], labels: &Labels) -> Result<()> {
        gc::hold(&self.store, &held.namespace, &held.lease, &[gc::content(digest)])?;
        let mut writer = match self.content.writer(
            &held.namespace,
            &format!("{}-{digest}", held.lease),
            bytes.len() as u64,
            Some(digest),
        ) {
            Err(Error::AlreadyExists(_)) => return self.relabel(&held.namespace, digest, labels),
            writer => writer?,
        };
        writer.write(bytes)?;
        match writer.commit(bytes.len() as u64, Some(digest), labels) {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists(_)) => self.relabel(&held.namespace, digest, labels),
            Err(error) => Err(error),
        }
    }

    fn relabel(&self, namespace: &Namespace, digest: &Digest, more: &Labels) -> Result<()> {
        self.content.update(namespace, digest, |labels| {
            labels.extend(more.clone());
            Ok(())
        })?;
        Ok(())
    }

    /// A small blob that has to be read: the configuration.
    async fn document(
        &self,
        registry: &Registry,
        held: &Held<'_>,
        descriptor: &Descriptor,
        source: &(String, String),
    ) -> Result<Vec<u8>> {
        const LIMIT: u64 = 4 << 20;
        let digest = descriptor.digest()?;
        if let Ok(bytes) = self.content.read(&held.namespace, &digest, LIMIT) {
            gc::hold(&self.store, &held.namespace, &held.lease, &[gc::content(&digest)])?;
            return Ok(bytes);
        }
        if descriptor.size > LIMIT {
            return Err(Error::ResourceExhausted(format!(
                "the configuration {digest} has {} bytes, at most {LIMIT} are read",
                descriptor.size
            )));
        }
        let mut blob = registry.blob(&digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(more) = blob.next().await? {
            bytes.extend_from_slice(&more);
            check_size(descriptor, bytes.len() as u64, false)?;
        }
        check_size(descriptor, bytes.len() as u64, true)?;
        if Digest::of(&bytes) != digest {
            return Err(Error::FailedPrecondition(format!(
                "the configuration's digest is {}, not {digest}",
                Digest::of(&bytes)
            )));
        }
        self.keep(held, &digest, &bytes, &Labels::from([source.clone()]))?;
        Ok(bytes)
    }

    /// Fetches and unpacks all layers, several at a time, then puts them on one another in order.
    #[allow(clippy::too_many_arguments)] // what a layer needs, once
    async fn layers(
        &self,
        registry: &Arc<Registry>,
        held: &Held<'_>,
        layers: &[Descriptor],
        diff_ids: &[Digest],
        source: &(String, String),
        request: &Request,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<()> {
        let chain = chain_ids(diff_ids);
        let room = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        let (stop, stopped) = watch::channel(false);
        let mut running = tokio::task::JoinSet::new();
        let mut unpacked: Vec<Option<Applied>> = vec![None; layers.len()];
        for (n, descriptor) in layers.iter().enumerate() {
            let unpack = request.unpack && self.snapshots.info(&held.namespace, OVERLAY, chain[n].as_str()).is_err();
            let key = format!("{}-{n}", held.lease);
            let digest = descriptor.digest()?;
            let snapshot = format!("snapshots/{OVERLAY}");
            let things =
                [gc::content(&digest), (snapshot.as_str(), key.clone()), (snapshot.as_str(), chain[n].to_string())];
            gc::hold(&self.store, &held.namespace, &held.lease, &things)?;
            let job = Job {
                puller: self.clone(),
                registry: registry.clone(),
                namespace: held.namespace.clone(),
                descriptor: descriptor.clone(),
                digest,
                diff_id: diff_ids[n].clone(),
                key: unpack.then_some(key),
                source: source.clone(),
                image: request.name.clone(),
                progress: progress.clone(),
                stopped: stopped.clone(),
            };
            tell(progress, "waiting", &job.name(), Some(&request.name), 0, descriptor.size);
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
        let this = self.clone();
        let (namespace, lease) = (held.namespace.clone(), held.lease.clone());
        let put_together = move || match failed {
            None => this.stack(&namespace, &lease, &chain, &unpacked),
            Some(error) => {
                for n in 0..unpacked.len() {
                    let _ = this.snapshots.remove(&namespace, OVERLAY, &format!("{lease}-{n}")); // most were never made
                }
                Err(error)
            }
        };
        tokio::task::spawn_blocking(put_together).await.map_err(|error| Error::Internal(error.to_string()))?
    }

    /// Commits the layers in order, each on the one below.
    fn stack(&self, namespace: &Namespace, lease: &str, chain: &[Digest], unpacked: &[Option<Applied>]) -> Result<()> {
        let mut parent = String::new();
        for (n, applied) in unpacked.iter().enumerate() {
            let name = chain[n].to_string();
            if let Some(applied) = applied {
                let key = format!("{lease}-{n}");
                let row = self.snapshots.row(namespace, OVERLAY, &key)?;
                let lower = if parent.is_empty() { Vec::new() } else { self.snapshots.chain(namespace, &parent)? };
                layer::inherit(&self.snapshots.layer(row.number), &applied.implied, &lower)?;
                match self.snapshots.commit(namespace, OVERLAY, &name, &key, &Labels::new(), Some(&parent)) {
                    Err(Error::AlreadyExists(_)) => self.snapshots.remove(namespace, OVERLAY, &key)?, // another pull was faster
                    answer => answer?,
                }
            }
            parent = name;
        }
        Ok(())
    }

    /// The image's row, made or replaced.
    fn name(&self, namespace: &Namespace, request: &Request, target: Target) -> Result<Pulled> {
        self.store.change(|rows| {
            let before: Option<Image> = rows.get(kind::IMAGE, namespace, &request.name)?;
            let now = Some(SystemTime::now().into());
            let created_at = before.as_ref().map_or(now, |before| before.created_at);
            let image = Image {
                name: request.name.clone(),
                labels: request.labels.clone(),
                target: Some(target),
                created_at,
                updated_at: now,
            };
            rows.put(kind::IMAGE, namespace, &request.name, &image)?;
            Ok(Pulled { image, new: before.is_none() })
        })
    }
}

fn tell(
    progress: &mpsc::Sender<Progress>,
    event: &'static str,
    name: &str,
    parent: Option<&str>,
    done: u64,
    total: u64,
) {
    // Whoever watches sees the next one; a pull does not wait for eyes.
    let _ = progress.try_send(Progress { event, name: name.into(), parent: parent.map(str::to_owned), done, total });
}

/// A blob that is longer than its descriptor, or at its end shorter, is refused.
fn check_size(descriptor: &Descriptor, size: u64, ended: bool) -> Result<()> {
    if size > descriptor.size || (ended && size != descriptor.size) {
        return Err(Error::FailedPrecondition(format!(
            "{} has {size} bytes, not {} as the manifest says",
            descriptor.digest, descriptor.size
        )));
    }
    Ok(())
}

/// One layer.
struct Job {
    puller: Puller,
    registry: Arc<Registry>,
    namespace: Namespace,
    descriptor: Descriptor,
    digest: Digest,
    diff_id: Digest,
    /// The snapshot to unpack into; none if its snapshot is there already.
    key: Option<String>,
    source: (String, String),
    image: String,
    progress: mpsc::Sender<Progress>,
    /// Another layer has failed: this one would be thrown away too.
    stopped: watch::Receiver<bool>,
}

impl Job {
    fn name(&self) -> String {
        format!("layer-{}", self.digest)
    }

    async fn run(self) -> Result<Option<Applied>> {
        let job = Arc::new(self);
        // The same layer may be wanted further up in this image, or by another pull.
        let turn = job.unless_stopped(async { Ok(job.puller.content.turn(&job.namespace, &job.digest).await) }).await?;
        let there = job.puller.content.info(&job.namespace, &job.digest).is_ok();
        let applied = if there {
            drop(turn);
            job.clone().from_disk().await?
        } else {
            job.clone().from_registry().await?
        };
        tell(&job.progress, "complete", &job.name(), Some(&job.image), job.descriptor.size, job.descriptor.size);
        Ok(applied)
    }

    /// Does its work, or gives up as soon as another layer has failed.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            biased;
            Ok(_) = stopped.wait_for(|stopped| *stopped) => Err(Error::Aborted("another layer has failed".into())),
            answer = work => answer,
        }
    }

    /// The blob is there; only its snapshot may be missing.
    async fn from_disk(self: Arc<Job>) -> Result<Option<Applied>> {
        let work = move || match &self.key {
            None => Ok(None),
            Some(key) => self.unpack(key, self.puller.content.reader(&self.namespace, &self.digest)?).map(Some),
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
    }

    /// One pass: this side reads the network, a thread hashes, writes and unpacks.
    async fn from_registry(self: Arc<Job>) -> Result<Option<Applied>> {
        let (pieces, pipe) = mpsc::channel(PIPE);
        let job = self.clone();
        let unpacking = tokio::task::spawn_blocking(move || job.receive(pipe));
        let fetched = self.unless_stopped(self.fetch(&pieces)).await;
        if let Err(error) = &fetched {
            let _ = pieces.send(Err(error.clone())).await; // the thread may have given up before
        }
        drop(pieces);
        let unpacked = unpacking.await.map_err(|error| Error::Internal(error.to_string()))?;
        // Of two errors the network's is the cause, unless the thread gave up and the network noticed.
        match (fetched, unpacked) {
            (Ok(()), unpacked) => unpacked,
            (Err(Error::Aborted(_)), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
        }
    }

    /// Reads the blob, going on at the byte where a connection broke.
    async fn fetch(&self, pieces: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut offset = 0;
        let mut attempt = 0;
        loop {
            match self.fetch_from(&mut offset, pieces).await {
                Err(Error::Unavailable(text)) if attempt < ATTEMPTS && offset > 0 && offset < self.descriptor.size => {
                    attempt += 1;
                    tracing::debug!("{text}; going on at byte {offset}");
                }
                answer => return answer,
            }
        }
    }

    async fn fetch_from(&self, offset: &mut u64, pieces: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut blob = self.registry.blob(&self.digest, *offset).await?;
        while let Some(piece) = blob.next().await? {
            *offset += piece.len() as u64;
            check_size(&self.descriptor, *offset, false)?;
            pieces.send(Ok(piece)).await.map_err(|_| Error::Aborted("unpacking has ended".into()))?;
            tell(&self.progress, "downloading", &self.name(), Some(&self.image), *offset, self.descriptor.size);
        }
        if *offset < self.descriptor.size {
            return Err(Error::Unavailable(format!(
                "reading {}: it ended at byte {offset} of {}",
                self.digest, self.descriptor.size
            )));
        }
        check_size(&self.descriptor, *offset, true)
    }

    /// The thread's side: every byte goes to the blob and to the unpacker; a digest that is wrong at the end throws both away.
    fn receive(&self, pipe: mpsc::Receiver<Result<Bytes>>) -> Result<Option<Applied>> {
        let reference = format!("layer-{}", self.digest);
        let mut writer =
            self.puller.content.writer(&self.namespace, &reference, self.descriptor.size, Some(&self.digest))?;
        writer.restart()?;
        let mut tee = Tee { pipe, writer, piece: Bytes::new(), failed: None };
        let unpacked = match &self.key {
            Some(key) => self.unpack(key, &mut tee).map(Some),
            None => io::copy(&mut tee, &mut io::sink())
                .map(|_| None)
                .map_err(|error| Error::io(format!("reading {}", self.digest), &error)),
        };
        let Tee { writer, failed, .. } = tee;
        let unpacked = match failed.map_or(unpacked, Err) {
            Ok(unpacked) => unpacked,
            Err(error) => {
                writer.discard()?;
                return Err(error);
            }
        };
        if writer.digest() != self.digest {
            let digest = writer.digest();
            writer.discard()?;
            return Err(Error::FailedPrecondition(format!("the layer's digest is {digest}, not {}", self.digest)));
        }
        let labels =
            Labels::from([self.source.clone(), ("containerd.io/uncompressed".into(), self.diff_id.to_string())]);
        match writer.commit(self.descriptor.size, Some(&self.digest), &labels) {
            Ok(_) | Err(Error::AlreadyExists(_)) => Ok(unpacked),
            Err(error) => Err(error),
        }
    }

    fn unpack(&self, key: &str, stream: impl Read) -> Result<Applied> {
        tell(&self.progress, "extracting", &self.name(), Some(&self.image), 0, self.descriptor.size);
        self.puller.snapshots.prepare(&self.namespace, OVERLAY, key, "", &Labels::new(), false)?;
        let row = self.puller.snapshots.row(&self.namespace, OVERLAY, key)?;
        let applied = layer::apply(stream, &self.puller.snapshots.layer(row.number), Removals::Overlay)?;
        if applied.diff_id != self.diff_id {
            return Err(Error::FailedPrecondition(format!(
                "the layer unpacks to {}, not {} as the configuration says",
                applied.diff_id, self.diff_id
            )));
        }
        Ok(applied)
    }
}

/// What arrives, copied to the blob while it is read.
struct Tee {
    pipe: mpsc::Receiver<Result<Bytes>>,
    writer: Writer,
    piece: Bytes,
    /// Why reading failed, in its own class.
    failed: Option<Error>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pipe.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => {
                    if let Err(error) = self.writer.write(&piece) {
                        self.failed = Some(error);
                        return Err(io::Error::other("writing the blob failed"));
                    }
                    self.piece = piece;
                }
                Some(Err(error)) => {
                    self.failed = Some(error);
                    return Err(io::Error::other("the download failed"));
                }
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
