//! Rows: everything that is small and must be true after a power cut, in one redb file, one transaction a change.
//!
//! After a write that failed (the disk is full) redb wants the file closed and opened again; the next who comes does that.
//!
//! A row's key names its kind, its namespace and itself, and its value is the protobuf message of that kind: see `format.rs`.
//!
//! The file is checked whole whenever it is opened, page by page: one that was damaged is refused by name, and not believed.
//! `tared fsck --repair` then saves what is whole, see `salvage.rs`.

mod format;
mod salvage;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use prost::Message;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::error::{Doing as _, Error, Result};
use crate::names::Namespace;
use format::key;
pub use salvage::{Saved, salvage};

const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
/// What redb keeps of the file in memory: rows are small, and the kernel has the rest.
const CACHE: usize = 4 << 20;

/// The kinds of rows, each with its message.
pub mod kind {
    /// `containerd.services.namespaces.v1.Namespace`, in no namespace.
    pub const NAMESPACE: &str = "namespace";
    /// `containerd.services.images.v1.Image`.
    pub const IMAGE: &str = "image";
    /// `containerd.services.containers.v1.Container`.
    pub const CONTAINER: &str = "container";
    /// `containerd.services.leases.v1.Lease`.
    pub const LEASE: &str = "lease";
    /// Named `LEASE NUL type NUL id`; `containerd.services.leases.v1.Resource`.
    pub const RESOURCE: &str = "resource";
    /// Named by digest; `containerd.services.content.v1.Info`.
    pub const BLOB: &str = "blob";
    /// `containerd.types.Sandbox`.
    pub const SANDBOX: &str = "sandbox";
    /// Named `SNAPSHOTTER NUL key`; [`crate::snapshot::Row`].
    pub const SNAPSHOT: &str = "snapshot";
    /// Named `SNAPSHOTTER NUL parent NUL key`, for each snapshot that has a parent; empty.
    pub const CHILD: &str = "child";
}

/// Clones share it.
#[derive(Clone)]
pub struct Store {
    file: Arc<File>,
    journal: Arc<Mutex<Option<Vec<Written>>>>,
}

struct File {
    path: PathBuf,
    /// Nothing only while it is being opened again.
    database: RwLock<Option<Arc<Database>>>,
    health: Health,
}

/// Whether a read or write has failed: then redb does nothing more on this handle.
#[derive(Clone, Default)]
struct Health(Arc<AtomicBool>);

/// A row that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl Health {
    fn failed(&self, error: impl Into<redb::Error>) -> Error {
        let text = |error: &dyn std::fmt::Display| format!("the database: {error}");
        match error.into() {
            redb::Error::Io(error) => {
                self.0.store(true, Ordering::SeqCst);
                Error::io("the database", &error)
            }
            error @ redb::Error::PreviousIo => {
                self.0.store(true, Ordering::SeqCst);
                Error::Unavailable(text(&error))
            }
            error => Error::Unknown(text(&error)),
        }
    }
}

impl Store {
    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// It is in use, damaged, or of a newer format.
    pub fn open(path: &Path) -> Result<Store> {
        let database = RwLock::new(Some(Arc::new(open(path)?)));
        let file = File { path: path.to_owned(), database, health: Health::default() };
        let store = Store { file: Arc::new(file), journal: Arc::default() };
        store.change(format::settle)?;
        Ok(store)
    }

    /// Checks every page of a database that nobody has open; what a crash left undone is done. Says what is wrong with it.
    ///
    /// # Errors
    /// It is in use, or cannot be read.
    pub fn check(path: &Path) -> Result<Option<String>> {
        match builder().create(path).map_err(redb::Error::from) {
            Ok(_) => Ok(None),
            Err(redb::Error::Corrupted(why)) => Ok(Some(why)),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// One row.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn get<M: Message + Default>(&self, kind: &str, namespace: &Namespace, name: &str) -> Result<Option<M>> {
        self.view()?.get(kind, namespace, name)
    }

    /// All rows of a kind in a namespace, in the order of their names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn list<M: Message + Default>(&self, kind: &str, namespace: &Namespace) -> Result<Vec<(String, M)>> {
        self.list_below(kind, namespace.as_str(), "")
    }

    /// Those whose names begin so.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn list_below<M: Message + Default>(
        &self,
        kind: &str,
        namespace: &str,
        begin: &str,
    ) -> Result<Vec<(String, M)>> {
        let mut rows = Vec::new();
        self.view()?.each(kind, namespace, begin, |name, row| rows.push((name.to_owned(), row)))?;
        Ok(rows)
    }

    /// All rows as they are at this moment, whatever is written meanwhile.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn view(&self) -> Result<View> {
        let health = self.file.health.clone();
        let read = self.file.database()?.begin_read().map_err(|error| health.failed(error))?;
        Ok(View { table: read.open_table(ROWS).map_err(|error| health.failed(error))?, health })
    }

    /// Notes from now on what is written: a view that is taken afterwards has every row that the journal lacks. There is
    /// one journal at a time.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn watch(&self) -> Result<Journal<'_>> {
        // Changes come one after the other, so none is under way now: each is in the view, or in the journal.
        let health = &self.file.health;
        let write = self.file.database()?.begin_write().map_err(|error| health.failed(error))?;
        *self.journal() = Some(Vec::new());
        write.abort().map_err(|error| health.failed(error))?;
        Ok(Journal { store: self })
    }

    fn journal(&self) -> MutexGuard<'_, Option<Vec<Written>>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespaces that have a row.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn namespaces(&self) -> Result<Vec<Namespace>> {
        let rows = self.list_below::<()>(kind::NAMESPACE, "", "")?;
        rows.iter().map(|(name, ())| Namespace::parse(name)).collect()
    }

    /// One change, whole or not at all.
    ///
    /// # Errors
    /// What `change` refuses, and then nothing is changed; or the disk is full.
    pub fn change<T>(&self, change: impl FnOnce(&mut Rows<'_>) -> Result<T>) -> Result<T> {
        let health = &self.file.health;
        let write = self.file.database()?.begin_write().map_err(|error| health.failed(error))?;
        let (result, written) = {
            let table = write.open_table(ROWS).map_err(|error| health.failed(error))?;
            let written = self.journal().is_some().then(Vec::new);
            let mut rows = Rows { table, written, health: health.clone() };
            (change(&mut rows)?, rows.written)
        };
        // Before the commit: once the next change begins, the journal has what this one wrote.
        if let (Some(journal), Some(written)) = (&mut *self.journal(), written) {
            journal.extend(written);
        }
        write.commit().map_err(|error| health.failed(error))?;
        Ok(result)
    }
}

impl File {
    /// The database, opened again if it has failed.
    fn database(&self) -> Result<Arc<Database>> {
        if self.health.0.load(Ordering::SeqCst) {
            self.open_again()?;
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or_else(|| Error::Unavailable("the database is being opened again".into()))
    }

    fn open_again(&self) -> Result<()> {
        // Those who still use the old handle end soon; until then the file's lock is theirs.
        const TRIES: u32 = 200;
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if !self.health.0.load(Ordering::SeqCst) {
            return Ok(()); // somebody else did it meanwhile
        }
        *database = None;
        let mut opened = open(&self.path);
        for _ in 1..TRIES {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            opened = open(&self.path);
        }
        *database = Some(Arc::new(opened?));
        self.health.0.store(false, Ordering::SeqCst);
        tracing::warn!("the database was opened again after a failure");
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database> {
    if !path.exists() {
        make(path)?;
    }
    create(path)
}

/// Makes an empty database aside and names it once it is whole: one whose making was cut short is none.
fn make(path: &Path) -> Result<()> {
    let doing = || format!("making the database {}", path.display());
    let aside = path.with_extension("new");
    if aside.exists() {
        fs::remove_file(&aside).doing(doing)?;
    }
    drop(create(&aside)?);
    fs::rename(&aside, path).doing(doing)?;
    sync_folder(path).doing(doing)
}

/// Makes the names in a file's folder durable.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn create(path: &Path) -> Result<Database> {
    builder().create(path).map_err(|error| refused(path, error.into()))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn refused(path: &Path, error: redb::Error) -> Error {
    let doing = format!("opening the database {}", path.display());
    match error {
        redb::Error::Io(error) => Error::io(doing, &error),
        redb::Error::Corrupted(why) => Error::Unknown(format!(
            "{doing}: it is damaged ({why}); with no daemon running, tared fsck --repair saves what is whole"
        )),
        error => Error::Unknown(format!("{doing}: {error}")),
    }
}

/// What was written since [`Store::watch`]. Dropping it ends the notes.
pub struct Journal<'s> {
    store: &'s Store,
}

impl Journal<'_> {
    /// What was noted since the last call.
    pub fn take(&self) -> Vec<Written> {
        self.store.journal().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Journal<'_> {
    fn drop(&mut self) {
        *self.store.journal() = None;
    }
}

/// All rows at one moment.
pub struct View {
    table: redb::ReadOnlyTable<&'static str, &'static [u8]>,
    health: Health,
}

impl View {
    /// # Errors
    /// The database is damaged.
    pub fn get<M: Message + Default>(&self, kind: &str, namespace: &Namespace, name: &str) -> Result<Option<M>> {
        let value =
            self.table.get(key(kind, namespace.as_str(), name).as_str()).map_err(|error| self.health.failed(error))?;
        value.map(|value| format::decode(value.value())).transpose()
    }

    /// Every row of a kind in a namespace whose name begins so, in the order of their names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn each<M: Message + Default>(
        &self,
        kind: &str,
        namespace: &str,
        begin: &str,
        mut what: impl FnMut(&str, M),
    ) -> Result<()> {
        let start = key(kind, namespace, begin);
        let own = key(kind, namespace, "").len();
        for row in self.table.range(start.as_str()..).map_err(|error| self.health.failed(error))? {
            let (name, value) = row.map_err(|error| self.health.failed(error))?;
            if !name.value().starts_with(&start) {
                break;
            }
            what(&name.value()[own..], format::decode(value.value())?);
        }
        Ok(())
    }
}

/// The rows within a change.
pub struct Rows<'t> {
    table: redb::Table<'t, &'static str, &'static [u8]>,
    /// For the journal, if there is one.
    written: Option<Vec<Written>>,
    health: Health,
}

impl Rows<'_> {
    fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(key).map_err(|error| self.health.failed(error))?.map(|value| value.value().to_vec()))
    }

    fn put_bytes(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.table.insert(key, value).map_err(|error| self.health.failed(error))?;
        Ok(())
    }

    fn put_row(&mut self, key: &str, row: &impl Message) -> Result<()> {
        self.put_bytes(key, &format::sealed(key, &row.encode_to_vec()))
    }

    /// # Errors
    /// The database is damaged.
    pub fn get<M: Message + Default>(&self, kind: &str, namespace: &Namespace, name: &str) -> Result<Option<M>> {
        self.bytes(&key(kind, namespace.as_str(), name))?.map(|value| format::decode(&value)).transpose()
    }

    /// All rows of a kind in a namespace, in the order of their names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn list<M: Message + Default>(&self, kind: &str, namespace: &Namespace) -> Result<Vec<(String, M)>> {
        let begin = key(kind, namespace.as_str(), "");
        let mut list = Vec::new();
        for row in self.table.range(begin.as_str()..).map_err(|error| self.health.failed(error))? {
            let (name, value) = row.map_err(|error| self.health.failed(error))?;
            let Some(name) = name.value().strip_prefix(begin.as_str()) else { break };
            list.push((name.to_owned(), format::decode(value.value())?));
        }
        Ok(list)
    }

    /// Writes a row; the namespace comes into being with its first one.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put(&mut self, kind: &str, namespace: &Namespace, name: &str, row: &impl Message) -> Result<()> {
        let own = key(kind::NAMESPACE, "", namespace.as_str());
        if self.bytes(&own)?.is_none() {
            let record = tare_proto::containerd::services::namespaces::v1::Namespace {
                name: namespace.as_str().into(),
                ..Default::default()
            };
            self.put_row(&own, &record)?;
        }
        if let Some(written) = &mut self.written {
            let (kind, namespace, name) = (kind.to_owned(), namespace.to_string(), name.to_owned());
            written.push(Written { kind, namespace, name });
        }
        self.put_row(&key(kind, namespace.as_str(), name), row)
    }

    /// Writes a row that belongs to no namespace.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put_global(&mut self, kind: &str, name: &str, row: &impl Message) -> Result<()> {
        self.put_row(&key(kind, "", name), row)
    }

    /// # Errors
    /// The database is damaged.
    pub fn get_global<M: Message + Default>(&self, kind: &str, name: &str) -> Result<Option<M>> {
        self.bytes(&key(kind, "", name))?.map(|value| format::decode(&value)).transpose()
    }

    /// Removes a row; whether it was there.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        Ok(self.table.remove(key(kind, namespace, name).as_str()).map_err(|error| self.health.failed(error))?.is_some())
    }

    /// Whether there is a row of a kind in a namespace whose name begins so.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn any(&self, kind: &str, namespace: &str, begin: &str) -> Result<bool> {
        let start = key(kind, namespace, begin);
        let first = self.table.range(start.as_str()..).map_err(|error| self.health.failed(error))?.next();
        let first = first.transpose().map_err(|error| self.health.failed(error))?;
        Ok(first.is_some_and(|(name, _)| name.value().starts_with(&start)))
    }

    /// The names of all rows of a kind in a namespace that begin so.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn names(&self, kind: &str, namespace: &str, begin: &str) -> Result<Vec<String>> {
        let start = key(kind, namespace, begin);
        let own = key(kind, namespace, "").len();
        let mut names = Vec::new();
        for row in self.table.range(start.as_str()..).map_err(|error| self.health.failed(error))? {
            let (name, _) = row.map_err(|error| self.health.failed(error))?;
            if !name.value().starts_with(&start) {
                break;
            }
            names.push(name.value()[own..].to_owned());
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tare_proto::containerd::services::images::v1::Image;

    #[test]
    fn a_database_whose_making_was_cut_short_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("db.new"), [0; 4096]).unwrap();
        Store::open(&dir.path().join("db")).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["db"]);
    }

    #[test]
    fn what_a_view_lacks_is_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let ns = Namespace::parse("n").unwrap();
        let put = |name: &str| store.change(|rows| rows.put(kind::IMAGE, &ns, name, &Image::default())).unwrap();
        put("before");
        let journal = store.watch().unwrap();
        put("first");
        let view = store.view().unwrap();
        put("second");
        let seen = |name: &str| view.get::<Image>(kind::IMAGE, &ns, name).unwrap().is_some();
        assert_eq!(["before", "first", "second"].map(seen), [true, true, false]);
        let noted = |journal: &Journal<'_>| journal.take().into_iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(noted(&journal), ["first", "second"]);
        assert!(noted(&journal).is_empty());
        let refused = store.change(|rows| {
            rows.put(kind::IMAGE, &ns, "third", &Image::default())?;
            Err::<(), _>(Error::Aborted("no".into()))
        });
        assert!(refused.is_err() && noted(&journal).is_empty(), "what was refused was not written");
        drop(journal);
        put("after");
        assert!(noted(&store.watch().unwrap()).is_empty());
    }

    #[test]
    fn a_full_disk_is_told_and_over_once_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=16m"))
            .unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let ns = Namespace::parse("n").unwrap();
        let put = |name: &str| {
            let labels = [("l".to_owned(), "x".repeat(4000))].into();
            let image = Image { name: name.into(), labels, ..Image::default() };
            store.change(|rows| rows.put(kind::IMAGE, &ns, name, &image))
        };
        put("before").unwrap();
        let ballast = dir.path().join("ballast");
        let filled = std::fs::write(&ballast, vec![0; 32 << 20]);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let refused = (0..1000).find_map(|n| put(&n.to_string()).err().map(|error| (n, error))).unwrap();
        assert!(matches!(refused.1, Error::ResourceExhausted(_)), "{refused:?}");
        std::fs::remove_file(&ballast).unwrap();
        put("after").unwrap();
        let names: Vec<_> = store.list::<Image>(kind::IMAGE, &ns).unwrap().into_iter().map(|(name, _)| name).collect();
        let expected = (0..refused.0).map(|n| n.to_string()).chain(["after".into(), "before".into()]);
        let mut expected: Vec<_> = expected.collect();
        expected.sort();
        assert_eq!(names, expected, "what was answered is there, and nothing else");
        drop(store);
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
