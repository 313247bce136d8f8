//! Layers that are here already, put on one another in a snapshotter of any kind.

use tare_proto::containerd::types::Descriptor as Target;

use super::Transfers;
use super::document::{Descriptor, chain_ids, diff_ids};
use super::held::Held;
use super::platform::Platform;
use super::progress::{Progress, State};
use crate::error::{Error, Result};
use crate::layer;
use crate::names::{Digest, Labels, Namespace};
use crate::snapshot::{FOR_SNAPSHOTTERS, REFERENCE};

/// What is read as a whole: a configuration.
const LONGEST: u64 = 4 << 20;

/// For which platform, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpack {
    pub platform: Platform,
    pub snapshotter: String,
}

/// An image that is here.
pub struct Here<'h> {
    pub config: &'h Digest,
    pub layers: &'h [Descriptor],
    pub diff_ids: &'h [Digest],
    /// Whom its progress belongs to.
    pub name: &'h str,
}

impl Here<'_> {
    /// # Errors
    /// `InvalidArgument`: the manifest and the configuration contradict one another.
    pub fn check(&self) -> Result<()> {
        if self.diff_ids.len() != self.layers.len() {
            return Err(Error::InvalidArgument(format!(
                "{}: {} layers, and the configuration has {}",
                self.name,
                self.layers.len(),
                self.diff_ids.len()
            )));
        }
        Ok(())
    }
}

impl Transfers {
    /// Unpacks an image whose content is here: it was fetched and no more, or the collector took its snapshots. Waits for
    /// the disk.
    ///
    /// # Errors
    /// `NotFound`: a layer's content is not here. A layer is malformed.
    pub fn unpack_here(
        &self,
        namespace: &Namespace,
        snapshotter: &str,
        config: &Digest,
        layers: &[Descriptor],
    ) -> Result<()> {
        let held = self.hold(namespace)?;
        for blob in layers.iter().map(Descriptor::digest).chain([Ok(config.clone())]) {
            let blob = blob?;
            if !held.has(&blob, &Labels::new())? {
                return Err(Error::NotFound(format!("content {blob}")));
            }
        }
        let diff_ids = diff_ids(&self.content.read(namespace, config, LONGEST)?)?;
        let image = Here { config, layers, diff_ids: &diff_ids, name: config.as_str() };
        self.unpack(&held, snapshotter, &image, &Progress::default())
    }

    /// Unpacks what is not unpacked yet, and says at the configuration which snapshot stands for the image. Waits for the disk.
    ///
    /// # Errors
    /// A layer is malformed, or unpacks to something else than the configuration says.
    pub(super) fn unpack(&self, held: &Held, snapshotter: &str, image: &Here<'_>, progress: &Progress) -> Result<()> {
        self.snapshots.check(snapshotter)?;
        image.check()?;
        let chain = chain_ids(image.diff_ids);
        let kind = format!("snapshots/{snapshotter}");
        let mut parent = String::new();
        for (n, layer) in image.layers.iter().enumerate() {
            let name = chain[n].to_string();
            let key = format!("{}-{n}", held.lease);
            held.things(&[(&kind, key.clone()), (&kind, name.clone())])?;
            if self.snapshots.info(&held.namespace, snapshotter, &name).is_err() {
                let tell = |event: &str, done| {
                    progress.tell(State {
                        event: event.into(),
                        name: layer.reference(),
                        parent: Some(image.name.to_owned()),
                        done,
                        total: layer.size,
                        what: Some(Target::from(layer)),
                    });
                };
                tell("extracting", 0);
                let unpacked = self.unpack_one(held, snapshotter, (&key, &parent, &name), layer, &image.diff_ids[n]);
                if unpacked.is_err() {
                    let _ = self.snapshots.remove(&held.namespace, snapshotter, &key); // it may never have been made
                }
                unpacked?;
                tell("complete", layer.size);
            }
            parent = name;
        }
        self.mark_unpacked(held, snapshotter, image.config, chain.last())
    }

    fn unpack_one(
        &self,
        held: &Held,
        snapshotter: &str,
        (key, parent, name): (&str, &str, &str),
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<()> {
        let ns = &held.namespace;
        let blob = self.content.reader(ns, &layer.digest()?)?;
        let labels = Labels::from([(REFERENCE.into(), name.to_owned())]);
        let mut asked = labels.clone();
        let annotations = layer.annotations.iter().filter(|(key, _)| key.starts_with(FOR_SNAPSHOTTERS));
        asked.extend(annotations.map(|(key, value)| (key.clone(), value.clone())));
        let mounts = match self.snapshots.prepare(ns, snapshotter, key, parent, &asked, false) {
            Err(Error::AlreadyExists(_)) => return Ok(()), // another pull was faster, or the snapshotter had the layer
            mounts => mounts?,
        };
        let applied = layer::Target::of(&mounts)?.unpack(blob)?;
        check_diff_id(&applied.diff_id, diff_id)?;
        let known = Labels::from([("containerd.io/uncompressed".into(), diff_id.to_string())]);
        held.relabel(&layer.digest()?, &known)?;
        match self.snapshots.commit(ns, snapshotter, name, key, &labels, None) {
            Err(Error::AlreadyExists(_)) => self.snapshots.remove(ns, snapshotter, key), // another one was faster
            answer => answer,
        }
    }

    /// The configuration keeps the snapshot of its top layer.
    pub(super) fn mark_unpacked(
        &self,
        held: &Held,
        snapshotter: &str,
        config: &Digest,
        top: Option<&Digest>,
    ) -> Result<()> {
        let Some(top) = top else { return Ok(()) };
        let label = (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top.to_string());
        held.relabel(config, &Labels::from([label]))
    }
}

/// # Errors
/// `FailedPrecondition`.
pub fn check_diff_id(found: &Digest, expected: &Digest) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!("the layer unpacks to {found}, not {expected} as the configuration says")))
}
