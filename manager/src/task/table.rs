//! What is made or being made, by namespace and name. A name is taken before anything is made for it.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::names::{Id, Namespace};

type Key = (Namespace, Id);

/// Clones share it.
pub struct Table<T>(Arc<Mutex<HashMap<Key, Entry<T>>>>);

enum Entry<T> {
    Making,
    Made(Arc<T>),
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table(Arc::default())
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Table<T> {
        Table(self.0.clone())
    }
}

impl<T> Table<T> {
    /// Takes a name for something that is about to be made.
    ///
    /// # Errors
    /// `AlreadyExists`, saying what of that name there is.
    pub fn take(&self, namespace: &Namespace, id: &Id, what: &str) -> Result<Name<'_, T>, Error> {
        let key = (namespace.clone(), id.clone());
        match self.lock().entry(key.clone()) {
            hash_map::Entry::Occupied(_) => Err(Error::AlreadyExists(format!("{what} {id}"))),
            hash_map::Entry::Vacant(place) => {
                place.insert(Entry::Making);
                Ok(Name { table: self, key: Some(key) })
            }
        }
    }

    pub fn get(&self, namespace: &Namespace, id: &Id) -> Option<Arc<T>> {
        self.lock().get(&(namespace.clone(), id.clone())).and_then(Entry::made)
    }

    /// Whether the name is taken.
    pub fn has(&self, namespace: &Namespace, id: &Id) -> bool {
        self.lock().contains_key(&(namespace.clone(), id.clone()))
    }

    /// All of a namespace, by name.
    pub fn list(&self, namespace: &Namespace) -> Vec<Arc<T>> {
        let table = self.lock();
        let mut list: Vec<_> = table
            .iter()
            .filter(|((of, _), _)| of == namespace)
            .filter_map(|((_, id), entry)| Some((id.clone(), entry.made()?)))
            .collect();
        drop(table);
        list.sort_by(|(a, _), (b, _)| a.cmp(b));
        list.into_iter().map(|(_, made)| made).collect()
    }

    /// Adds what was found rather than made.
    pub fn put(&self, namespace: &Namespace, id: &Id, found: Arc<T>) {
        self.lock().insert((namespace.clone(), id.clone()), Entry::Made(found));
    }

    pub fn is_current(&self, namespace: &Namespace, id: &Id, known: &Arc<T>) -> bool {
        self.get(namespace, id).is_some_and(|current| Arc::ptr_eq(&current, known))
    }

    /// Frees the name, unless by now something else has it.
    pub fn forget(&self, namespace: &Namespace, id: &Id, known: &Arc<T>) {
        let mut table = self.lock();
        if let hash_map::Entry::Occupied(entry) = table.entry((namespace.clone(), id.clone()))
            && entry.get().made().is_some_and(|current| Arc::ptr_eq(&current, known))
        {
            entry.remove();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Entry<T> {
    fn made(&self) -> Option<Arc<T>> {
        match self {
            Entry::Made(made) => Some(made.clone()),
            Entry::Making => None,
        }
    }
}

/// A name that is taken: given to what was made, or free again.
pub struct Name<'a, T> {
    table: &'a Table<T>,
    key: Option<Key>,
}

impl<T> Name<'_, T> {
    pub fn give(mut self, made: Arc<T>) {
        if let Some(key) = self.key.take() {
            self.table.lock().insert(key, Entry::Made(made));
        }
    }
}

impl<T> Drop for Name<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.table.lock().remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_and_free_again_when_nothing_came_of_it() {
        let table = Table::default();
        let (ns, id) = (Namespace::parse("n").unwrap(), Id::parse("a").unwrap());
        let name = table.take(&ns, &id, "task").unwrap();
        let Err(Error::AlreadyExists(said)) = table.take(&ns, &id, "task") else { panic!() };
        assert_eq!(said, "task a");
        assert!(table.has(&ns, &id) && table.get(&ns, &id).is_none() && table.list(&ns).is_empty());
        drop(name);
        let (first, second) = (Arc::new(1), Arc::new(1));
        table.take(&ns, &id, "task").unwrap().give(first.clone());
        table.forget(&ns, &id, &second);
        assert!(table.is_current(&ns, &id, &first), "forgetting another of the same name leaves it");
        table.forget(&ns, &id, &first);
        assert!(!table.has(&ns, &id));
    }
}
