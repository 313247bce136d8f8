//! A push: blobs first, several at a time, then the documents that refer to them, and the name last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tare_proto::containerd::types::Descriptor as Target;
use tokio::sync::Semaphore;

use super::Transfers;
use super::document::{Descriptor, Document};
use super::held::source_key;
use super::layer::blocking;
use super::platform::Platform;
use super::progress::{Progress, State};
use crate::error::{Error, Result};
use crate::names::Namespace;
use crate::registry::{Options, Reference, Registry};

/// Blobs on their way at once.
const SIDE_BY_SIDE: usize = 4;
/// A manifest or an index that is read as a whole.
const LONGEST: u64 = 4 << 20;
/// How often it is told how far a blob has come.
const GLANCE: Duration = Duration::from_millis(100);

/// What is to be pushed, and where.
#[derive(Debug, Clone, Default)]
pub struct Push {
    /// The image here.
    pub name: String,
    pub reference: String,
    /// Of an index, the images for these; all if there are none.
    pub platforms: Vec<Platform>,
    pub registry: Options,
}

/// A blob, and the repositories of the registry that have it, as far as that is known.
struct Blob {
    what: Descriptor,
    sources: Vec<String>,
}

/// A document with its bytes, in the order in which a registry takes them.
type Ordered = Vec<(Descriptor, Vec<u8>)>;

impl Transfers {
    /// # Errors
    /// `NotFound`: the image, or a part of it, is not here; the registry's.
    pub async fn push(&self, namespace: &Namespace, push: &Push, progress: &Progress) -> Result<()> {
        let reference = Reference::parse(&push.reference)?;
        let (of, options) = (reference.clone(), push.registry.clone());
        let registry = Arc::new(blocking(move || Registry::new(&of, &options)).await?);
        let (transfers, of, asked) = (self.clone(), namespace.clone(), push.clone());
        let key = source_key(&reference.host);
        let (documents, blobs) = blocking(move || transfers.parts(&of, &asked, &key)).await?;
        progress.say(format!("Pushing to OCI Registry ({})", push.reference));
        let (last, _) = documents.last().ok_or_else(|| Error::NotFound(format!("image {:?}", push.name)))?;
        let sending = Sending {
            transfers: self.clone(),
            namespace: namespace.clone(),
            registry,
            progress: progress.clone(),
            parent: push.name.clone(),
        };
        self.unless_ended(sending.blobs(blobs)).await?;
        for (descriptor, bytes) in &documents {
            let object = match reference.digest.is_none() && std::ptr::eq(descriptor, last) {
                true => reference.tag.as_str(),
                false => descriptor.digest.as_str(),
            };
            self.unless_ended(sending.document(descriptor, bytes, object)).await?;
        }
        progress.say(format!("Completed push to OCI Registry ({})", push.reference));
        Ok(())
    }

    /// What an image is made of: its documents, those that others refer to first, and its blobs.
    ///
    /// A blob need not be here if the registry can have it from a repository that a document came from, as containerd has it:
    /// so an image of which one platform was pulled can be pushed as a whole.
    fn parts(&self, namespace: &Namespace, push: &Push, source_key: &str) -> Result<(Ordered, Vec<Blob>)> {
        let target = Descriptor::from(&self.image(namespace, &push.name)?.target.unwrap_or_default());
        let (mut documents, mut blobs): (Ordered, Vec<Blob>) = (Vec::new(), Vec::new());
        let mut waiting = vec![(target, Vec::new())];
        while let Some((descriptor, of_parent)) = waiting.pop() {
            let sources = match self.content.info(namespace, &descriptor.digest()?) {
                Err(Error::NotFound(_)) if !of_parent.is_empty() => of_parent,
                info => match info?.labels.get(source_key) {
                    Some(list) => list.split(',').map(str::to_owned).collect(),
                    None => of_parent,
                },
            };
            if !descriptor.is_document() {
                // A layer that must not be passed on stays where its maker has it.
                if !descriptor.is_foreign() && !blobs.iter().any(|known| known.what.digest == descriptor.digest) {
                    blobs.push(Blob { what: descriptor, sources });
                }
                continue;
            }
            let bytes = self.content.read(namespace, &descriptor.digest()?, LONGEST)?;
            let document = Document::read(&descriptor.media_type, &bytes)?;
            let is_index = matches!(document, Document::Index(_));
            let wanted = |child: &Descriptor| {
                !is_index || child.platform.as_ref().is_none_or(|platform| platform.is_among(&push.platforms))
            };
            let children = document.children().into_iter().filter(wanted);
            waiting.extend(children.map(|child| (child, sources.clone())));
            documents.retain(|(known, _)| known.digest != descriptor.digest); // it comes further down too
            documents.push((descriptor, bytes));
        }
        documents.reverse();
        Ok((documents, blobs))
    }
}

#[derive(Clone)]
struct Sending {
    transfers: Transfers,
    namespace: Namespace,
    registry: Arc<Registry>,
    progress: Progress,
    parent: String,
}

impl Sending {
    fn tell(&self, event: &str, descriptor: &Descriptor, done: u64) {
        self.progress.tell(State {
            event: event.into(),
            name: descriptor.reference(),
            parent: Some(self.parent.clone()),
            done,
            total: descriptor.size,
            what: Some(Target::from(descriptor)),
        });
    }

    async fn blobs(&self, blobs: Vec<Blob>) -> Result<()> {
        let room = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        let mut running = tokio::task::JoinSet::new(); // dropped with the first error, it ends the others
        for blob in blobs {
            self.tell("waiting", &blob.what, 0);
            let (sending, room) = (self.clone(), room.clone());
            running.spawn(async move {
                let _place = room.acquire_owned().await;
                sending.blob(&blob).await
            });
        }
        while let Some(sent) = running.join_next().await {
            sent.map_err(|error| Error::Internal(format!("a blob's task: {error}")))??;
        }
        Ok(())
    }

    async fn blob(&self, Blob { what: descriptor, sources }: &Blob) -> Result<()> {
        let digest = descriptor.digest()?;
        if self.registry.has("blobs", digest.as_str(), &digest).await? {
            self.tell("already exists", descriptor, descriptor.size);
            return Ok(());
        }
        let (content, namespace, of) = (self.transfers.content.clone(), self.namespace.clone(), digest.clone());
        let open = Arc::new(move || content.reader(&namespace, &of));
        let sent = Arc::new(AtomicU64::new(0));
        let pushing = self.registry.push_blob(&digest, descriptor.size, sources, open, sent.clone());
        tokio::pin!(pushing);
        loop {
            tokio::select! {
                pushed = &mut pushing => {
                    pushed?;
                    break;
                }
                () = tokio::time::sleep(GLANCE) => self.tell("uploading", descriptor, sent.load(Ordering::Relaxed)),
            }
        }
        self.tell("complete", descriptor, descriptor.size);
        Ok(())
    }

    async fn document(&self, descriptor: &Descriptor, bytes: &[u8], object: &str) -> Result<()> {
        if self.registry.has("manifests", object, &descriptor.digest()?).await? {
            self.tell("already exists", descriptor, descriptor.size);
            return Ok(());
        }
        self.registry.push_manifest(object, &descriptor.media_type, bytes.to_vec().into()).await?;
        self.tell("complete", descriptor, descriptor.size);
        Ok(())
    }
}
