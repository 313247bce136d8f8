//! Rows: everything that is small and must be true after a power cut, in one redb file, one transaction a change.
//!
//! A key is `kind NUL namespace NUL name`; a value is the protobuf message of that kind. Row `version` holds the version of
//! this format; a newer one is refused.

use std::path::Path;
use std::sync::Arc;

use prost::Message;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::error::{Error, Result};
use crate::names::Namespace;

const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
const VERSION: &str = "1";

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
}

#[derive(Clone)]
pub struct Store(Arc<Database>);

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Unknown(format!("the database: {error}"))
}

fn key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}\0{namespace}\0{name}")
}

impl Store {
    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// It is in use, damaged, or of a newer format.
    pub fn open(path: &Path) -> Result<Store> {
        let database = Database::create(path)
            .map_err(|error| Error::Unknown(format!("opening the database {}: {error}", path.display())))?;
        let store = Store(Arc::new(database));
        store.change(|rows| match rows.bytes("version")? {
            None => rows.put_bytes("version", VERSION.as_bytes()),
            Some(found) if found == VERSION.as_bytes() => Ok(()),
            Some(found) => {
                let found = String::from_utf8_lossy(&found).into_owned();
                Err(Error::FailedPrecondition(format!(
                    "the database has format {found}, this program knows {VERSION}: use a newer one"
                )))
            }
        })?;
        Ok(store)
    }

    /// One row.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn get<M: Message + Default>(&self, kind: &str, namespace: &Namespace, name: &str) -> Result<Option<M>> {
        let read = self.0.begin_read().map_err(failed)?;
        let table = read.open_table(ROWS).map_err(failed)?;
        let value = table.get(key(kind, namespace.as_str(), name).as_str()).map_err(failed)?;
        value.map(|value| M::decode(value.value()).map_err(failed)).transpose()
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
        let read = self.0.begin_read().map_err(failed)?;
        let table = read.open_table(ROWS).map_err(failed)?;
        let start = key(kind, namespace, begin);
        let own = key(kind, namespace, "").len();
        let mut rows = Vec::new();
        for row in table.range(start.as_str()..).map_err(failed)? {
            let (name, value) = row.map_err(failed)?;
            let Some(name) = name.value().strip_prefix(&start[..]).map(|_| name.value()[own..].to_owned()) else {
                break;
            };
            rows.push((name, M::decode(value.value()).map_err(failed)?));
        }
        Ok(rows)
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
        let write = self.0.begin_write().map_err(failed)?;
        let result = {
            let table = write.open_table(ROWS).map_err(failed)?;
            change(&mut Rows { table })?
        };
        write.commit().map_err(failed)?;
        Ok(result)
    }
}

/// The rows within a change.
pub struct Rows<'t> {
    table: redb::Table<'t, &'static str, &'static [u8]>,
}

impl Rows<'_> {
    fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(key).map_err(failed)?.map(|value| value.value().to_vec()))
    }

    fn put_bytes(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.table.insert(key, value).map_err(failed)?;
        Ok(())
    }

    /// # Errors
    /// The database is damaged.
    pub fn get<M: Message + Default>(&self, kind: &str, namespace: &Namespace, name: &str) -> Result<Option<M>> {
        self.bytes(&key(kind, namespace.as_str(), name))?
            .map(|value| M::decode(value.as_slice()).map_err(failed))
            .transpose()
    }

    /// All rows of a kind in a namespace, in the order of their names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn list<M: Message + Default>(&self, kind: &str, namespace: &Namespace) -> Result<Vec<(String, M)>> {
        let begin = key(kind, namespace.as_str(), "");
        let mut list = Vec::new();
        for row in self.table.range(begin.as_str()..).map_err(failed)? {
            let (name, value) = row.map_err(failed)?;
            let Some(name) = name.value().strip_prefix(begin.as_str()) else { break };
            list.push((name.to_owned(), M::decode(value.value()).map_err(failed)?));
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
            self.put_bytes(&own, &record.encode_to_vec())?;
        }
        self.put_bytes(&key(kind, namespace.as_str(), name), &row.encode_to_vec())
    }

    /// Writes a row that belongs to no namespace.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put_global(&mut self, kind: &str, name: &str, row: &impl Message) -> Result<()> {
        self.put_bytes(&key(kind, "", name), &row.encode_to_vec())
    }

    /// # Errors
    /// The database is damaged.
    pub fn get_global<M: Message + Default>(&self, kind: &str, name: &str) -> Result<Option<M>> {
        self.bytes(&key(kind, "", name))?.map(|value| M::decode(value.as_slice()).map_err(failed)).transpose()
    }

    /// Removes a row; whether it was there.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        Ok(self.table.remove(key(kind, namespace, name).as_str()).map_err(failed)?.is_some())
    }

    /// The names of all rows of a kind in a namespace that begin so.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn names(&self, kind: &str, namespace: &str, begin: &str) -> Result<Vec<String>> {
        let start = key(kind, namespace, begin);
        let own = key(kind, namespace, "").len();
        let mut names = Vec::new();
        for row in self.table.range(start.as_str()..).map_err(failed)? {
            let (name, _) = row.map_err(failed)?;
            if !name.value().starts_with(&start) {
                break;
            }
            names.push(name.value()[own..].to_owned());
        }
        Ok(names)
    }
}
