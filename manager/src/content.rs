//! Blobs by digest. One is written aside, checked, synced, then named; its row comes last. What has no row is removed.
//!
//! ```text
//! blobs/sha256/HEX      whole and checked; beside it blobs/sha384 and blobs/sha512
//! ingest/HASH/data      being written; `ref` beside it names namespace and reference
//! ```
//!
//! Blobs are shared between namespaces on disk, and visible in those that have a row for them. Who knows a digest that
//! another namespace has gets a row for the asking, as with containerd, unless the store is [`Content::isolated`].

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tare_proto::containerd::services::content::v1::Info;
use tokio::sync::OwnedMutexGuard;

use crate::error::{Doing as _, Error, Result};
use crate::names::{Algorithm, Digest, Hasher, Labels, Namespace, check_labels};
use crate::store::{Store, kind};

/// How long a write that was left, and that no lease holds, can be gone on with.
const INGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

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

/// How far a write has come.
#[derive(Debug, Clone)]
pub struct Status {
    pub reference: String,
    pub offset: u64,
    pub total: u64,
    pub expected: String,
    pub started: SystemTime,
    pub updated: SystemTime,
}

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
        row.ok_or_else(|| Error::NotFound(format!("content {digest}")))
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
                .ok_or_else(|| Error::NotFound(format!("content {digest}")))?;
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
        if there { self.discard(digest) } else { Err(Error::NotFound(format!("content {digest}"))) }
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

    /// Opens a write under a reference, or goes on with one. One of a blob that another namespace shares is at its end at
    /// once: it only has to be committed.
    ///
    /// # Errors
    /// `Unavailable` somebody else writes there; `AlreadyExists` the blob that is expected is there.
    pub fn writer(
        &self,
        namespace: &Namespace,
        reference: &str,
        total: u64,
        expected: Option<&Digest>,
    ) -> Result<Writer> {
        if reference.is_empty() {
            return Err(Error::InvalidArgument("ref must not be empty".into()));
        }
        if let Some(expected) = expected
            && self.info(namespace, expected).is_ok()
        {
            return Err(Error::AlreadyExists(format!("content {expected}")));
        }
        let locked = (namespace.clone(), reference.to_owned());
        if !self.locked.lock().unwrap_or_else(PoisonError::into_inner).insert(locked.clone()) {
            return Err(Error::Unavailable(format!("ref {reference} locked")));
        }
        let lock = Lock { locked: self.locked.clone(), name: locked };
        let folder = self.ingest(namespace, reference);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .doing(|| format!("making {}", folder.display()))?;
        let doing = || format!("writing {reference}");
        fs::write(
            folder.join("ref"),
            format!("{namespace}\n{total}\n{}\n{reference}", expected.map_or("", Digest::as_str)),
        )
        .doing(doing)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join("data"))
            .doing(doing)?;
        let shared = match expected {
            Some(expected) => self.shared(namespace, expected)?.map(|info| info.size.unsigned_abs()),
            None => None,
        };
        let mut hash = Hasher::new(expected.map_or(Algorithm::Sha256, Digest::algorithm));
        let offset = match shared {
            Some(size) => size,
            None => std::io::copy(&mut file, &mut HashWriter(&mut hash)).doing(doing)?,
        };
        let meta = fs::metadata(folder.join("data")).doing(doing)?;
        let updated = meta.modified().doing(doing)?;
        let started = meta.created().unwrap_or(updated);
        Ok(Writer {
            content: self.clone(),
            namespace: namespace.clone(),
            reference: reference.to_owned(),
            folder,
            file,
            hash,
            offset,
            total,
            expected: expected.cloned(),
            started,
            updated,
            shared: shared.is_some(),
            _lock: lock,
        })
    }

    /// All writes that are under way or were left.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn statuses(&self, namespace: &Namespace) -> Result<Vec<Status>> {
        let folder = self.root.join("ingest");
        let entries = fs::read_dir(&folder).doing(|| format!("reading {}", folder.display()))?;
        Ok(entries.flatten().filter_map(|entry| status_of(&entry.path(), namespace)).collect())
    }

    /// # Errors
    /// `NotFound`.
    pub fn status(&self, namespace: &Namespace, reference: &str) -> Result<Status> {
        status_of(&self.ingest(namespace, reference), namespace)
            .ok_or_else(|| Error::NotFound(format!("ingest {reference}")))
    }

    /// Throws a write away.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn abort(&self, namespace: &Namespace, reference: &str) -> Result<()> {
        let folder = self.ingest(namespace, reference);
        if !folder.exists() {
            return Err(Error::NotFound(format!("ingest {reference}")));
        }
        fs::remove_dir_all(&folder).doing(|| format!("removing {}", folder.display()))
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

    /// Removes blobs that no namespace has a row for, and writes that nobody went on with for a day unless they are `held`.
    ///
    /// # Errors
    /// The database is damaged, or a file cannot be removed.
    pub fn sweep(&self, held: &HashSet<(Namespace, String)>) -> Result<()> {
        self.sweep_blobs()?;
        self.sweep_ingests(held)
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

    /// Removes writes that nobody went on with for a day, unless they are `held`.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn sweep_ingests(&self, held: &HashSet<(Namespace, String)>) -> Result<()> {
        // Nobody begins to write, or goes on with a write, while it is looked at.
        let locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: HashSet<PathBuf> =
            held.iter().chain(locked.iter()).map(|(namespace, reference)| self.ingest(namespace, reference)).collect();
        for path in entries(&self.root.join("ingest"))? {
            let touched = |name: &str| fs::metadata(path.join(name)).and_then(|there| there.modified());
            let at = touched("data").or_else(|_| touched("."));
            let old = at.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > INGEST_LIFE));
            if old && !kept.contains(&path) {
                fs::remove_dir_all(&path).doing(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("reading {}", folder.display());
    fs::read_dir(folder).doing(doing)?.map(|entry| Ok(entry.doing(doing)?.path())).collect()
}

fn status_of(folder: &Path, namespace: &Namespace) -> Option<Status> {
    let text = fs::read_to_string(folder.join("ref")).ok()?;
    let mut lines = text.splitn(4, '\n');
    let (owner, total, expected, reference) = (lines.next()?, lines.next()?, lines.next()?, lines.next()?);
    let data = fs::metadata(folder.join("data")).ok().filter(|_| owner == namespace.as_str())?;
    Some(Status {
        reference: reference.into(),
        offset: data.len(),
        total: total.parse().ok()?,
        expected: expected.into(),
        started: data.created().or_else(|_| data.modified()).ok()?,
        updated: data.modified().ok()?,
    })
}

struct HashWriter<'h>(&'h mut Hasher);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Lock {
    locked: Arc<Mutex<HashSet<(Namespace, String)>>>,
    name: (Namespace, String),
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// A write that nobody sees yet. Dropped without a commit, it stays to be gone on with.
pub struct Writer {
    content: Content,
    namespace: Namespace,
    reference: String,
    folder: PathBuf,
    file: File,
    hash: Hasher,
    offset: u64,
    total: u64,
    expected: Option<Digest>,
    started: SystemTime,
    updated: SystemTime,
    /// Nothing was written: the blob is another namespace's.
    shared: bool,
    _lock: Lock,
}

impl Writer {
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.shared && !bytes.is_empty() {
            return Err(Error::OutOfRange(format!("writing {}: it is whole", self.reference)));
        }
        self.file.write_all_at(bytes, self.offset).doing(|| format!("writing {}", self.reference))?;
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        self.updated = SystemTime::now();
        Ok(())
    }

    /// Starts again from nothing.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).doing(|| format!("starting {} again", self.reference))?;
        self.hash = Hasher::new(self.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        self.offset = 0;
        self.shared = false;
        Ok(())
    }

    pub fn status(&self) -> Status {
        Status {
            reference: self.reference.clone(),
            offset: self.offset,
            total: self.total,
            expected: self.expected.as_ref().map_or(String::new(), ToString::to_string),
            started: self.started,
            updated: self.updated,
        }
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Digest {
        match &self.expected {
            Some(expected) if self.shared => expected.clone(),
            _ => self.hash.digest(),
        }
    }

    /// What it is to become, said late: if its digest is of another kind, what was written is read again.
    ///
    /// # Errors
    /// The disk's.
    pub fn expect(&mut self, expected: &Digest) -> Result<()> {
        if !self.shared && expected.algorithm() != self.hash.digest().algorithm() {
            let doing = || format!("reading {} again", self.reference);
            self.file.rewind().doing(doing)?;
            self.hash = Hasher::new(expected.algorithm());
            std::io::copy(&mut self.file, &mut HashWriter(&mut self.hash)).doing(doing)?;
        }
        Ok(())
    }

    /// Checks what was written and makes it a blob.
    ///
    /// # Errors
    /// `FailedPrecondition` another size or digest; the write stays. `AlreadyExists` the blob is there; the write goes.
    pub fn commit(mut self, size: u64, expected: Option<&Digest>, labels: &Labels) -> Result<Digest> {
        check_labels(labels)?;
        if size > 0 && size != self.offset {
            return Err(Error::FailedPrecondition(format!("unexpected commit size {}, expected {size}", self.offset)));
        }
        if let Some(expected) = expected {
            self.expect(expected)?;
        }
        let digest = self.digest();
        if let Some(expected) = expected.or(self.expected.as_ref())
            && *expected != digest
        {
            return Err(Error::FailedPrecondition(format!("unexpected commit digest {digest}, expected {expected}")));
        }
        if self.shared {
            let adopted = self.content.adopt(&self.namespace, &digest, labels)?;
            let _ = fs::remove_dir_all(&self.folder); // empty; what is left of it is swept
            let gone = || Error::FailedPrecondition(format!("content {digest} went away meanwhile"));
            return if adopted { Ok(digest) } else { Err(gone()) };
        }
        let doing = || format!("committing {}", self.reference);
        self.file.sync_data().doing(doing)?;
        let blob = self.content.blob(&digest);
        let naming = self.content.naming.lock().unwrap_or_else(PoisonError::into_inner);
        fs::rename(self.folder.join("data"), &blob).doing(doing)?;
        let blobs = blob.parent().expect("a blob lies in the folder of its kind");
        File::open(blobs).and_then(|folder| folder.sync_all()).doing(doing)?; // the name is durable before its row
        let now = Some(SystemTime::now().into());
        let size = i64::try_from(self.offset).unwrap_or(i64::MAX);
        let info = Info { digest: digest.to_string(), size, created_at: now, updated_at: now, labels: labels.clone() };
        let new = self.content.store.change(|rows| {
            if rows.get::<Info>(kind::BLOB, &self.namespace, digest.as_str())?.is_some() {
                return Ok(false);
            }
            rows.put(kind::BLOB, &self.namespace, digest.as_str(), &info)?;
            Ok(true)
        })?;
        drop(naming);
        let _ = fs::remove_dir_all(&self.folder); // the blob is committed; what is left of the write is swept at the next start
        if new { Ok(digest) } else { Err(Error::AlreadyExists(format!("content {digest}"))) }
    }

    /// Throws the write away.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn discard(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).doing(|| format!("removing {}", self.folder.display()))
    }
}

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Writer::write(self, bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> (tempfile::TempDir, Content, Namespace) {
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
            content.sweep(&HashSet::new()).unwrap();
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
        content.sweep(&HashSet::new()).unwrap();
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
        content.sweep(&HashSet::new()).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    }

    #[test]
    fn a_write_that_was_left_a_day_ago_goes_unless_somebody_holds_it() {
        let (dir, content, ns) = content();
        let begin = |reference: &str| {
            let mut writer = content.writer(&ns, reference, 0, None).unwrap();
            writer.write(b"x").unwrap();
            writer.file.set_modified(SystemTime::now() - INGEST_LIFE - Duration::from_secs(1)).unwrap();
            writer
        };
        for left in ["left", "leased"] {
            drop(begin(left));
        }
        let writing = begin("at work");
        drop(content.writer(&ns, "young", 0, None).unwrap());
        fs::create_dir(dir.path().join("ingest/crashed")).unwrap();
        fs::File::open(dir.path().join("ingest/crashed"))
            .and_then(|folder| folder.set_modified(SystemTime::UNIX_EPOCH))
            .unwrap();
        content.sweep(&HashSet::from([(ns.clone(), "leased".to_owned())])).unwrap();
        let mut kept: Vec<_> = content.statuses(&ns).unwrap().into_iter().map(|status| status.reference).collect();
        kept.sort();
        assert_eq!(kept, ["at work", "leased", "young"]);
        assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 3);
        drop(writing);
    }
}
