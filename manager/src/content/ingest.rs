//! Writes that are under way, or were left: opened under a reference, gone on with, committed or thrown away.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Seek as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tare_proto::containerd::services::content::v1::Info;

use super::{Content, entries};
use crate::error::{Doing as _, Error, Result};
use crate::names::{Algorithm, Digest, Hasher, Labels, Namespace, check_labels};
use crate::store::kind;

/// How long a write that was left, and that no lease holds, can be gone on with.
const INGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

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
        let about = format!("{namespace}\n{total}\n{}\n{reference}", expected.map_or("", Digest::as_str));
        let started = describe(&folder.join("ref"), &about).doing(doing)?;
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
        let updated = file.metadata().and_then(|meta| meta.modified()).doing(doing)?;
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

/// Says what is written; the file's time is when that began. The kernel's own times are some milliseconds behind the clock,
/// and clients compare.
fn describe(path: &Path, about: &str) -> std::io::Result<SystemTime> {
    let before = fs::metadata(path).and_then(|there| there.modified());
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, about.as_bytes())?;
    let began = before.unwrap_or_else(|_| SystemTime::now());
    file.set_modified(began)?;
    Ok(began)
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
        started: fs::metadata(folder.join("ref")).and_then(|about| about.modified()).ok()?,
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
            return Err(Error::FailedPrecondition(format!(
                "{:?} failed size validation: {} != {size}",
                self.reference, self.offset
            )));
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

impl Drop for Writer {
    /// Whoever goes on with it is told the time that the client of this one was told.
    fn drop(&mut self) {
        let _ = self.file.set_modified(self.updated);
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
    use crate::content::tests::content;

    #[test]
    fn a_write_that_was_left_a_day_ago_goes_unless_somebody_holds_it() {
        let (dir, content, ns) = content();
        let begin = |reference: &str| {
            let mut writer = content.writer(&ns, reference, 0, None).unwrap();
            writer.write(b"x").unwrap();
            writer.updated = SystemTime::now() - INGEST_LIFE - Duration::from_secs(1);
            writer.file.set_modified(writer.updated).unwrap();
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
        content.sweep_ingests(&HashSet::from([(ns.clone(), "leased".to_owned())])).unwrap();
        let mut kept: Vec<_> = content.statuses(&ns).unwrap().into_iter().map(|status| status.reference).collect();
        kept.sort();
        assert_eq!(kept, ["at work", "leased", "young"]);
        assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 3);
        drop(writing);
    }
}
