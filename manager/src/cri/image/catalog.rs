//! The images there are, put together from the rows of their names.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::names::{Digest, Namespace};
use crate::oci::ImageConfig;
use crate::service::Services;
use crate::transfer::{Described, Document, Platform, chain_ids, diff_ids};

/// Set by whoever wants an image to be spared by the kubelet's collector.
pub const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// A manifest or a configuration of more bytes is none.
const LONGEST: u64 = 8 << 20;

/// What an image is, read from its documents, which never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The digest of its configuration.
    pub id: String,
    /// The snapshot of its top layer.
    pub chain: String,
    /// Of all that was fetched for it, compressed as it came.
    pub size: u64,
    pub user: String,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub facts: Arc<Facts>,
    pub names: Vec<String>,
    pub pinned: bool,
}

/// Facts by the digest that a name stands for: a kubelet asks every few seconds.
#[derive(Clone, Default)]
pub struct Catalog(Arc<Mutex<HashMap<String, Arc<Facts>>>>);

impl Catalog {
    /// Every image of a namespace. A name whose content is not here, or not for this machine, is no image to run.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn list(&self, parts: &Services, namespace: &Namespace) -> Result<Vec<Image>> {
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        let mut seen: HashMap<String, Arc<Facts>> = HashMap::new();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for row in parts.images.list(namespace, &[])? {
            let target = row.target.unwrap_or_default();
            let facts = match seen.get(&target.digest).or_else(|| known.get(&target.digest)) {
                Some(facts) => facts.clone(),
                None => match facts(parts, namespace, &target.media_type, &target.digest) {
                    Ok(facts) => Arc::new(facts),
                    Err(error) => {
                        tracing::debug!(name = row.name, "not an image to run: {error}");
                        continue;
                    }
                },
            };
            seen.insert(target.digest, facts.clone());
            let id = facts.id.clone();
            let image = images.entry(id).or_insert_with(|| Image { facts, names: Vec::new(), pinned: false });
            image.pinned |= row.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
            image.names.push(row.name);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(images.into_values().collect())
    }

    /// A manifest or a configuration.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn document(parts: &Services, namespace: &Namespace, digest: &str) -> Result<Vec<u8>> {
        parts.content.read(namespace, &Digest::parse(digest)?, LONGEST)
    }
}

/// An image's manifest for this machine.
pub struct Manifest {
    pub config: Described,
    pub layers: Vec<Described>,
    /// Of the documents that led to it, with it.
    size: u64,
}

/// # Errors
/// `NotFound`: a document is not here, or none is for this machine.
pub fn manifest(parts: &Services, namespace: &Namespace, media_type: &str, digest: &str) -> Result<Manifest> {
    let read = |digest: &str| Catalog::document(parts, namespace, digest);
    let top = read(digest)?;
    let mut size = top.len() as u64;
    let manifest = match Document::read(media_type, &top)? {
        Document::Index(manifests) => {
            let chosen = Document::choose(&manifests, &Platform::own())?;
            let bytes = read(&chosen.digest)?;
            size += bytes.len() as u64;
            Document::read(&chosen.media_type, &bytes)?
        }
        manifest => manifest,
    };
    let Document::Manifest { config, layers } = manifest else {
        return Err(Error::InvalidArgument(format!("{digest}: an index in an index")));
    };
    Ok(Manifest { config, layers, size })
}

fn facts(parts: &Services, namespace: &Namespace, media_type: &str, digest: &str) -> Result<Facts> {
    let Manifest { config, layers, size } = manifest(parts, namespace, media_type, digest)?;
    let bytes = Catalog::document(parts, namespace, &config.digest)?;
    Ok(Facts {
        chain: chain_ids(&diff_ids(&bytes)?).last().map(ToString::to_string).unwrap_or_default(),
        size: size + config.size + layers.iter().map(|layer| layer.size).sum::<u64>(),
        user: ImageConfig::read(&bytes)?.user,
        id: config.digest,
    })
}
