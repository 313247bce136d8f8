//! One layer, fetched and unpacked in one pass: bytes go from the socket through the digest into a file, the decompressor
//! and the unpacker while they are in the cache.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tare_proto::containerd::types::Descriptor as Target;
use tokio::sync::{mpsc, watch};

use super::Transfers;
use super::document::Descriptor;
use super::held::Held;
use super::progress::{Progress, State};
use super::unpack::check_diff_id;
use crate::content::Writer;
use crate::error::{Error, Result};
use crate::layer::{self, Applied};
use crate::names::{Digest, Labels};
use crate::registry::Registry;
use crate::snapshot::OVERLAY;

/// How often a broken connection is made again without much having come.
const ATTEMPTS: u32 = 5;
/// So much is not nothing: the attempts begin anew.
const MUCH: u64 = 64 << 10;
/// Before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// Pieces of a blob between the network and the disk, each of 128 KiB at most.
const PIPE: usize = 8;

pub struct Job {
    pub transfers: Transfers,
    pub registry: Arc<Registry>,
    pub held: Arc<Held>,
    pub descriptor: Descriptor,
    pub digest: Digest,
    /// What it is unpacked, if it is a layer.
    pub diff_id: Option<Digest>,
    /// The overlay snapshot to unpack into; none if it is not to be unpacked on its way.
    pub key: Option<String>,
    /// What is said of the blob.
    pub labels: Labels,
    pub parent: String,
    pub progress: Progress,
    /// Another layer has failed: this one would be thrown away too.
    pub stopped: watch::Receiver<bool>,
}

impl Job {
    pub fn tell(&self, event: &str, done: u64) {
        self.progress.tell(State {
            event: event.into(),
            name: self.descriptor.reference(),
            parent: Some(self.parent.clone()),
            done,
            total: self.descriptor.size,
            what: Some(Target::from(&self.descriptor)),
        });
    }

    /// # Errors
    /// The registry's, or the disk's. Nothing that looks whole and is not is left.
    pub async fn run(self) -> Result<Option<Applied>> {
        let job = Arc::new(self);
        // The same layer may be wanted further up in this image, or by another pull.
        let content = &job.transfers.content;
        let turn = job.unless_stopped(async { Ok(content.turn(&job.held.namespace, &job.digest).await) }).await?;
        let asked = job.clone();
        let there = blocking(move || asked.held.has(&asked.digest, &asked.labels)).await?;
        let applied = if there {
            drop(turn);
            if job.key.is_none() {
                job.tell("already exists", job.descriptor.size);
                return Ok(None);
            }
            job.clone().from_disk().await?
        } else {
            job.clone().from_registry().await?
        };
        job.tell("complete", job.descriptor.size);
        Ok(applied)
    }

    /// Does its work, or gives up as soon as another layer has failed or nobody wants it any more.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            biased;
            Ok(_) = stopped.wait_for(|stopped| *stopped) => Err(Error::Aborted("another layer has failed".into())),
            answer = self.transfers.unless_ended(work) => answer,
        }
    }

    /// The blob is there; only its snapshot is missing.
    async fn from_disk(self: Arc<Job>) -> Result<Option<Applied>> {
        blocking(move || match &self.key {
            None => Ok(None),
            Some(key) => {
                let blob = self.transfers.content.reader(&self.held.namespace, &self.digest)?;
                self.unpack(key, blob).map(Some)
            }
        })
        .await
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
        let (mut offset, mut attempt) = (0, 0);
        loop {
            let before = offset;
            match self.fetch_from(&mut offset, pieces).await {
                Err(Error::Unavailable(text)) if offset < self.descriptor.size => {
                    attempt = if offset - before >= MUCH { 0 } else { attempt + 1 };
                    if attempt >= ATTEMPTS {
                        return Err(Error::Unavailable(text));
                    }
                    tracing::debug!("{text}; going on at byte {offset}");
                    if attempt > 1 {
                        tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 2)).await;
                    }
                }
                answer => return answer,
            }
        }
    }

    async fn fetch_from(&self, offset: &mut u64, pieces: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut blob = self.registry.blob(&self.digest, *offset, &self.descriptor.urls).await?;
        while let Some(piece) = blob.next().await? {
            *offset += piece.len() as u64;
            check_size(&self.descriptor, *offset, false)?;
            pieces.send(Ok(piece)).await.map_err(|_| Error::Aborted("unpacking has ended".into()))?;
            self.tell("downloading", *offset);
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
        let reference = self.descriptor.reference();
        let content = &self.transfers.content;
        let mut writer = content.writer(&self.held.namespace, &reference, self.descriptor.size, Some(&self.digest))?;
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
        let mut labels = self.labels.clone();
        if let (Some(diff_id), Some(_)) = (&self.diff_id, &unpacked) {
            labels.insert("containerd.io/uncompressed".into(), diff_id.to_string());
        }
        match writer.commit(self.descriptor.size, Some(&self.digest), &labels) {
            Ok(_) | Err(Error::AlreadyExists(_)) => Ok(unpacked),
            Err(error) => Err(error),
        }
    }

    fn unpack(&self, key: &str, stream: impl Read) -> Result<Applied> {
        self.tell("extracting", 0);
        let snapshots = &self.transfers.snapshots;
        snapshots.prepare(&self.held.namespace, OVERLAY, key, "", &Labels::new(), false)?;
        let row = snapshots.row(&self.held.namespace, OVERLAY, key)?;
        let applied = layer::apply(stream, &snapshots.layer(row.number), snapshots.removals())?;
        if let Some(diff_id) = &self.diff_id {
            check_diff_id(&applied.diff_id, diff_id)?;
        }
        Ok(applied)
    }
}

/// Waits for the disk where it keeps nobody else waiting.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

/// A blob that is longer than its descriptor, or at its end shorter, is refused.
pub fn check_size(descriptor: &Descriptor, size: u64, ended: bool) -> Result<()> {
    if size > descriptor.size || (ended && size != descriptor.size) {
        return Err(Error::FailedPrecondition(format!(
            "{} has {size} bytes, not {} as the manifest says",
            descriptor.digest, descriptor.size
        )));
    }
    Ok(())
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
