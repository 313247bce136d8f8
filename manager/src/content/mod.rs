//! Blobs by digest. One is written aside, checked, synced, then named; its row comes last. What has no row is removed.
//!
//! ```text
//! blobs/sha256/HEX      whole and checked; beside it blobs/sha384 and blobs/sha512
//! ingest/HASH/data      being written; `ref` beside it names namespace and reference
//! ```
//!
//! Blobs are shared between namespaces on disk, and visible in those that have a row for them. Who knows a digest that
//! another namespace has gets a row for the asking, as with containerd, unless the store is [`Content::isolated`].

mod ingest;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tare_proto::containerd::services::content::v1::Info;
use tokio::sync::OwnedMutexGuard;

use crate::error::{Doing as _, Error, Result};
use crate::names::{Algorithm, Digest, Labels, Namespace, check_labels};
use crate::store::{Store, kind};
pub use ingest::{Status, Writer};

/// A place in the queue for one blob; gone with the last who stands there.
type Turns = HashMap<(Namespace, Digest), Weak<tokio::sync::Mutex<()>>>;

#[derive(Clone)]
pub struct Content {
    root: PathBuf,
    store: Store,
    /// References that somebody writes to.
    locked: Arc<Mutex<HashSet<(Namespace, String)>>>,
    /// Held from the moment a blob has its name until it has its row: the sweep must not come between.
    naming: Arc<Mutex<()>>,
    turns: Arc<Mutex<Turns>>,
    isolated: bool,
}

/// A namespace whose blobs others get for the asking, whatever the policy is.
pub const SHAREABLE: &str = "containerd.io/namespace.shareable";

impl Content {
    /// Opens the blobs below `root`.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn open(root: &Path, store: Store) -> Result<Content> {
        let blobs = Algorithm::ALL.map(|algorithm| root.join("blobs").join(algorithm.name()));
        for dir in blobs.iter().chain([&root.join("ingest")]) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .doing(|| format!("making {}", dir.display()))?;
        }
        Ok(Content {
            root: root.to_owned(),
            store,
            locked: Arc::default(),
            naming: Arc::default(),
            turns: Arc::default(),
            isolated: false,
        })
    }

    /// Namespaces get nothing of one another but from those that have the label [`SHAREABLE`].
    #[must_use]
    pub fn isolated(self) -> Content {
        Content { isolated: true, ..self }
    }

    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// Waits until nobody else fetches this blob, which may be there afterwards. Nobody else does while the answer is held.
    pub async fn turn(&self, namespace: &Namespace, digest: &Digest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let place = turns.entry((namespace.clone(), digest.clone())).or_default();
            place.upgrade().unwrap_or_else(|| {
                let turn = Arc::default();
                *place = Arc::downgrade(&turn);
                turn
            })
        };
        turn.lock_owned().await
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn ingest(&self, namespace: &Namespace, reference: &str) -> PathBuf {
        self.root.join("ingest").join(Digest::of(format!("{namespace}\n{reference}").as_bytes()).hex())
    }

    /// # Errors
    /// `NotFound`.
    pub fn info(&self, namespace: &Namespace, digest: &Digest) -> Result<Info> {
        let row = self.store.get(kind::BLOB, namespace, digest.as_str())?;
        row.ok_or_else(|| Error::NotFound(format!("content digest {digest}")))
    }

    /// # Errors
    /// The database is damaged.
    pub fn list(&self, namespace: &Namespace) -> Result<Vec<Info>> {
        Ok(self.store.list(kind::BLOB, namespace)?.into_iter().map(|(_, info)| info).collect())
    }

    /// Changes what a row says beside the digest.
    ///
    /// # Errors
    /// `NotFound`, or what `change` refuses.
    pub fn update(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        change: impl FnOnce(&mut Labels) -> Result<()>,
    ) -> Result<Info> {
        self.store.change(|rows| {
            let mut info: Info = rows
                .get(kind::BLOB, namespace, digest.as_str())?
                .ok_or_else(|| Error::NotFound(format!("content digest {digest}")))?;
            change(&mut info.labels)?;
            info.updated_at = Some(SystemTime::now().into());
            rows.put(kind::BLOB, namespace, digest.as_str(), &info)?;
            Ok(info)
        })
    }

    /// Takes a blob away from a namespace, and from disk when no other has it.
    ///
    /// # Errors
    /// `NotFound`, or the file cannot be removed.
    pub fn delete(&self, namespace: &Namespace, digest: &Digest) -> Result<()> {
        let there = self.store.change(|rows| rows.remove(kind::BLOB, namespace.as_str(), digest.as_str()))?;
        if there { self.discard(digest) } else { Err(Error::NotFound(format!("content digest {digest}"))) }
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn reader(&self, namespace: &Namespace, digest: &Digest) -> Result<File> {
        self.info(namespace, digest)?;
        File::open(self.blob(digest)).doing(|| format!("opening content {digest}"))
    }

    /// A small blob as a whole.
    ///
    /// # Errors
    /// `NotFound`; `ResourceExhausted` if it is longer than `limit`.
    pub fn read(&self, namespace: &Namespace, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let info = self.info(namespace, digest)?;
        if info.size.unsigned_abs() > limit {
            return Err(Error::ResourceExhausted(format!(
                "content {digest} has {} bytes, at most {limit} are read",
                info.size
            )));
        }
        let mut bytes = Vec::new();
        self.reader(namespace, digest)?.read_to_end(&mut bytes).doing(|| format!("reading content {digest}"))?;
        Ok(bytes)
    }

    /// Makes a blob visible that another namespace has and shares. Whether there was one.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn adopt(&self, namespace: &Namespace, digest: &Digest, labels: &Labels) -> Result<bool> {
        check_labels(labels)?;
        if self.shared(namespace, digest)?.is_none() {
            return Ok(false);
        }
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at again, when the sweep cannot take it away any more.
        let Some(other) = self.shared(namespace, digest)? else { return Ok(false) };
        let now = Some(SystemTime::now().into());
        let info = Info {
            digest: digest.to_string(),
            size: other.size,
            created_at: now,
            updated_at: now,
            labels: labels.clone(),
        };
        self.store.change(|rows| {
            if rows.get::<Info>(kind::BLOB, namespace, digest.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("content {digest}")));
            }
            rows.put(kind::BLOB, namespace, digest.as_str(), &info)
        })?;
        Ok(true)
    }

    /// Another namespace's row for a blob that this one may have.
    fn shared(&self, namespace: &Namespace, digest: &Digest) -> Result<Option<Info>> {
        for other in self.store.namespaces()?.into_iter().filter(|other| other != namespace) {
            let Some(info) = self.store.get::<Info>(kind::BLOB, &other, digest.as_str())? else { continue };
            if (!self.isolated || self.is_shareable(&other)?) && self.blob(digest).exists() {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    fn is_shareable(&self, namespace: &Namespace) -> Result<bool> {
        use tare_proto::containerd::services::namespaces::v1::Namespace as Record;
        let rows = self.store.list_below::<Record>(kind::NAMESPACE, "", namespace.as_str())?;
        let record = rows.into_iter().find(|(name, _)| name == namespace.as_str());
        Ok(record.is_some_and(|(_, record)| record.labels.get(SHAREABLE).is_some_and(|value| value == "true")))
    }

    /// Removes a blob's file, unless a namespace has a row for it.
    ///
    /// # Errors
    /// The database is damaged, or the file cannot be removed.
    pub fn discard(&self, digest: &Digest) -> Result<()> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.store.view()?;
        for namespace in self.store.namespaces()? {
            if view.get::<Info>(kind::BLOB, &namespace, digest.as_str())?.is_some() {
                return Ok(());
            }
        }
        let path = self.blob(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes blobs that no namespace has a row for, one at a time: a commit need not wait for more.
    ///
    /// # Errors
    /// The database is damaged, or a file cannot be removed.
    pub fn sweep_blobs(&self) -> Result<()> {
        for algorithm in Algorithm::ALL {
            for path in entries(&self.root.join("blobs").join(algorithm.name()))? {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                match Digest::parse(&format!("{}:{name}", algorithm.name())) {
                    Ok(digest) => self.discard(&digest)?,
                    Err(_) => fs::remove_file(&path).doing(|| format!("removing {}", path.display()))?,
                }
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("reading {}", folder.display());
    fs::read_dir(folder).doing(doing)?.map(|entry| Ok(entry.doing(doing)?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Hasher;

    pub(super) fn content() -> (tempfile::TempDir, Content, Namespace) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let content = Content::open(dir.path(), store).unwrap();
        (dir, content, Namespace::parse("test").unwrap())
    }

    #[test]
    fn nothing_is_visible_before_it_is_whole_and_checked() {
        let (_dir, content, ns) = content();
        let digest = Digest::of(b"hello");
        let mut writer = content.writer(&ns, "r", 5, Some(&digest)).unwrap();
        writer.write(b"hell").unwrap();
        assert!(content.info(&ns, &digest).is_err());
        assert_eq!(content.writer(&ns, "r", 5, None).err().unwrap(), Error::Unavailable("ref r locked".into()));
        assert!(matches!(writer.commit(5, None, &Labels::new()), Err(Error::FailedPrecondition(_))));
        let mut writer = content.writer(&ns, "r", 5, None).unwrap();
        assert_eq!(writer.status().offset, 4, "a write that was left is gone on with");
        writer.write(b"o").unwrap();
        assert_eq!(writer.commit(5, Some(&digest), &Labels::new()).unwrap(), digest);
        assert_eq!(content.read(&ns, &digest, 100).unwrap(), b"hello");
        assert!(matches!(content.writer(&ns, "s", 5, Some(&digest)), Err(Error::AlreadyExists(_))));
    }

    #[test]
    fn a_wrong_digest_leaves_nothing_that_looks_whole() {
        let (_dir, content, ns) = content();
        let mut writer = content.writer(&ns, "r", 0, Some(&Digest::of(b"good"))).unwrap();
        writer.write(b"evil").unwrap();
        let error = writer.commit(0, None, &Labels::new()).unwrap_err();
        assert!(error.to_string().starts_with("unexpected commit digest"), "{error}");
        assert!(content.list(&ns).unwrap().is_empty());
    }

    #[test]
    fn a_blob_may_be_named_by_a_longer_digest_even_late() {
        let (dir, content, ns) = content();
        for algorithm in [Algorithm::Sha384, Algorithm::Sha512] {
            let mut hash = Hasher::new(algorithm);
            hash.update(b"hello");
            let digest = hash.digest();
            let mut writer = content.writer(&ns, "r", 5, None).unwrap();
            writer.write(b"hello").unwrap();
            assert_eq!(writer.commit(5, Some(&digest), &Labels::new()).unwrap(), digest);
            assert_eq!(content.read(&ns, &digest, 100).unwrap(), b"hello");
            content.delete(&ns, &digest).unwrap();
            content.sweep_blobs().unwrap();
            content.sweep_ingests(&HashSet::new()).unwrap();
            let left = fs::read_dir(dir.path().join("blobs").join(algorithm.name())).unwrap().count();
            assert_eq!(left, 0, "{digest}");
        }
    }

    /// As containerd's client suite has it: the write begins at its end, and is committed without a byte.
    #[test]
    fn who_knows_a_digest_of_another_namespace_commits_without_a_byte() {
        let (_dir, content, ns) = content();
        let mut writer = content.writer(&ns, "r", 0, None).unwrap();
        writer.write(b"hello").unwrap();
        let digest = writer.commit(0, None, &Labels::new()).unwrap();
        let other = Namespace::parse("other").unwrap();
        let writer = content.writer(&other, "r", 5, Some(&digest)).unwrap();
        assert_eq!(writer.status().offset, 5);
        writer.commit(5, Some(&digest), &Labels::new()).unwrap();
        assert_eq!(content.read(&other, &digest, 100).unwrap(), b"hello");
        assert!(content.statuses(&other).unwrap().is_empty());
        // Or it is written like any other.
        let third = Namespace::parse("third").unwrap();
        let mut writer = content.writer(&third, "r", 5, Some(&digest)).unwrap();
        writer.restart().unwrap();
        writer.write(b"hello").unwrap();
        writer.commit(5, Some(&digest), &Labels::new()).unwrap();
        content.delete(&ns, &digest).unwrap();
        content.sweep_blobs().unwrap();
        content.sweep_ingests(&HashSet::new()).unwrap();
        assert_eq!(content.read(&third, &digest, 100).unwrap(), b"hello");
    }

    #[test]
    fn an_isolated_namespace_gives_nothing_away_unless_it_says_so() {
        use tare_proto::containerd::services::namespaces::v1::Namespace as Record;
        let (_dir, content, ns) = content();
        let content = content.isolated();
        let mut writer = content.writer(&ns, "r", 0, None).unwrap();
        writer.write(b"hello").unwrap();
        let digest = writer.commit(0, None, &Labels::new()).unwrap();
        let other = Namespace::parse("other").unwrap();
        assert_eq!(content.writer(&other, "r", 5, Some(&digest)).unwrap().status().offset, 0);
        let labels = Labels::from([(SHAREABLE.into(), "true".into())]);
        let record = Record { name: ns.as_str().into(), labels };
        content.store.change(|rows| rows.put_global(kind::NAMESPACE, ns.as_str(), &record)).unwrap();
        assert_eq!(content.writer(&other, "r", 5, Some(&digest)).unwrap().status().offset, 5);
    }

    #[test]
    fn a_blob_without_a_row_is_swept() {
        let (dir, content, ns) = content();
        let mut writer = content.writer(&ns, "r", 0, None).unwrap();
        writer.write(b"x").unwrap();
        let digest = writer.commit(0, None, &Labels::new()).unwrap();
        content.delete(&ns, &digest).unwrap();
        content.sweep_blobs().unwrap();
        content.sweep_ingests(&HashSet::new()).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    }
}
