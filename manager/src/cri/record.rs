//! Rows in memory, and the tables they are found in by id or a unique beginning of one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::rows::Row;
use crate::error::{Error, Result};
use crate::names::Namespace;
use crate::store::{Rows, Store};

/// A row that is in the database, with its copy here. Readers never wait for the disk.
pub struct Record<R> {
    pub id: String,
    row: watch::Sender<Arc<R>>,
    /// Held while the database is written, so that changes are in the same order here and there.
    writing: Mutex<()>,
    /// Written by whatever ends or begins what the row describes; read by what must not happen meanwhile.
    pub turn: tokio::sync::RwLock<()>,
    store: Store,
    namespace: Namespace,
}

impl<R: Row> Record<R> {
    pub fn row(&self) -> Arc<R> {
        self.row.borrow().clone()
    }

    /// Changes the row here alone: what a daemon that starts again need not know.
    pub fn mark(&self, change: impl FnOnce(&mut R)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut row = R::clone(&self.row());
        change(&mut row);
        self.row.send_replace(Arc::new(row));
    }

    /// Returns when the row is so, at once if it is.
    pub async fn until(&self, so: impl Fn(&R) -> bool) {
        // The sender is ours, so there is no error.
        let _ = self.row.subscribe().wait_for(|row| so(row)).await;
    }

    /// Changes the row, on disk first.
    ///
    /// # Errors
    /// What `change` refuses, or the disk is full: then nothing has changed.
    pub async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&mut R) -> Result<()> + Send + 'static,
    ) -> Result<Arc<R>> {
        let record = self.clone();
        off_thread(move || {
            let _writing = record.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut row = R::clone(&record.row());
            change(&mut row)?;
            record.store.change(|rows| rows.put(R::KIND, &record.namespace, &record.id, &row))?;
            let row = Arc::new(row);
            record.row.send_replace(row.clone());
            Ok(row)
        })
        .await
    }
}

/// All records of a kind.
pub struct Table<R> {
    records: Mutex<BTreeMap<String, Arc<Record<R>>>>,
    store: Store,
    namespace: Namespace,
}

impl<R: Row> Table<R> {
    /// Reads what the database has.
    ///
    /// # Errors
    /// It is damaged.
    pub fn open(store: &Store, namespace: &Namespace) -> Result<Table<R>> {
        let table = Table { records: Mutex::default(), store: store.clone(), namespace: namespace.clone() };
        for (_, row) in store.list::<R>(R::KIND, namespace)? {
            let record = table.record(row);
            table.lock().insert(record.id.clone(), record);
        }
        Ok(table)
    }

    /// Takes the row's name and writes it down.
    ///
    /// # Errors
    /// `AlreadyExists`: another one has the name.
    pub async fn add(self: &Arc<Self>, row: R) -> Result<Arc<Record<R>>> {
        let (table, record) = (self.clone(), self.record(row));
        off_thread(move || {
            let row = record.row();
            {
                let mut records = table.lock();
                let name = row.name();
                if let Some(other) = records.values().find(|other| other.row().name() == name) {
                    let text = format!("reserving {} name {name:?}: it is reserved for {:?}", R::NOUN, other.id);
                    return Err(Error::AlreadyExists(text));
                }
                records.insert(record.id.clone(), record.clone());
            }
            let written = table.store.change(|rows| rows.put(R::KIND, &table.namespace, &record.id, &*row));
            if written.is_err() {
                table.lock().remove(&record.id);
            }
            written.map(|()| record)
        })
        .await
    }

    /// Forgets a record: its name is free.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<()> {
        self.remove_with(id, |_| Ok(())).await
    }

    /// As [`Table::remove`], with `more` in the same change.
    ///
    /// # Errors
    /// What `more` refuses, or the disk is full: then nothing has changed.
    pub async fn remove_with<T: Send + 'static>(
        self: &Arc<Self>,
        id: &str,
        more: impl FnOnce(&mut Rows<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (table, id) = (self.clone(), id.to_owned());
        off_thread(move || {
            let said = table.store.change(|rows| {
                rows.remove(R::KIND, table.namespace.as_str(), &id)?;
                more(rows)
            })?;
            table.lock().remove(&id);
            Ok(said)
        })
        .await
    }

    /// By its id, or the beginning of it if no other one begins so.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find(&self, id: &str) -> Result<Arc<Record<R>>> {
        let records = self.lock();
        if let Some(record) = records.get(id) {
            return Ok(record.clone());
        }
        let missing = || Error::NotFound(format!("an error occurred when try to find {} {id:?}", R::NOUN));
        let begin = Some(id).filter(|id| !id.is_empty()).ok_or_else(missing)?;
        let mut found = records.range(begin.to_owned()..).take_while(|(other, _)| other.starts_with(begin));
        match (found.next(), found.next()) {
            (Some((_, record)), None) => Ok(record.clone()),
            _ => Err(missing()),
        }
    }

    /// As [`Table::find`], where none is no error.
    pub fn get(&self, id: &str) -> Option<Arc<Record<R>>> {
        self.find(id).ok()
    }

    pub fn all(&self) -> Vec<Arc<Record<R>>> {
        self.lock().values().cloned().collect()
    }

    fn record(&self, row: R) -> Arc<Record<R>> {
        Arc::new(Record {
            id: row.id().to_owned(),
            row: watch::Sender::new(Arc::new(row)),
            writing: Mutex::default(),
            turn: tokio::sync::RwLock::default(),
            store: self.store.clone(),
            namespace: self.namespace.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Record<R>>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what waits for the disk where it keeps nobody else waiting.
///
/// # Errors
/// Those of `work`.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let lost = |error: tokio::task::JoinError| Error::Internal(format!("a request ended early: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

#[cfg(test)]
mod tests {
    use tare_proto::runtime::v1 as pb;

    use super::*;
    use crate::cri::rows::Pod;

    fn pod(id: &str, name: &str) -> Pod {
        let metadata = pb::PodSandboxMetadata { name: name.into(), ..Default::default() };
        let config = pb::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        Pod { id: id.into(), config: Some(config), ..Pod::default() }
    }

    #[tokio::test]
    async fn a_name_is_taken_once_and_free_after_removal_and_all_of_it_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (store, namespace) = (Store::open(&dir.path().join("db")).unwrap(), Namespace::parse("k8s.io").unwrap());
        let table = Arc::new(Table::<Pod>::open(&store, &namespace).unwrap());
        table.add(pod("abc1", "web")).await.unwrap();
        assert!(matches!(table.add(pod("abd2", "web")).await, Err(Error::AlreadyExists(_))));
        table.add(pod("abd2", "db")).await.unwrap();
        for (begin, found) in [("abc", Some("abc1")), ("abd2", Some("abd2")), ("ab", None), ("", None), ("x", None)] {
            assert_eq!(table.get(begin).map(|record| record.id.clone()).as_deref(), found, "{begin:?}");
        }
        let changed = table
            .find("abc1")
            .unwrap()
            .change(|row| {
                row.pid = 7;
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(changed.pid, 7);
        let again = Arc::new(Table::<Pod>::open(&store, &namespace).unwrap());
        assert_eq!((again.all().len(), again.find("abc1").unwrap().row().pid), (2, 7));
        again.remove("abc1").await.unwrap();
        again.add(pod("abe3", "web")).await.unwrap();
    }
}
