//! Namespaces as records: labels, and what is left in them. A namespace comes into being with its first row.

use tare_proto::containerd::services::namespaces::v1::Namespace as Record;

use crate::error::{Error, Result};
use crate::names::{Labels, Namespace, check_labels, update_labels};
use crate::store::{Store, kind};

#[derive(Clone)]
pub struct Namespaces {
    store: Store,
}

/// What keeps a namespace from being removed.
const KEEPING: &[(&str, &str)] = &[
    (kind::IMAGE, "images"),
    (kind::BLOB, "blobs"),
    (kind::SNAPSHOT, "snapshots"),
    (kind::CONTAINER, "containers"),
    (kind::SANDBOX, "sandboxes"),
];

impl Namespaces {
    pub fn new(store: Store) -> Namespaces {
        Namespaces { store }
    }

    /// One that nobody made yet has no labels: clients ask for a namespace's defaults before they use it.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn get(&self, name: &Namespace) -> Result<Record> {
        let mut record = None;
        self.store.view()?.each(kind::NAMESPACE, "", name.as_str(), |found, row: Record| {
            if found == name.as_str() {
                record = Some(row);
            }
        })?;
        Ok(record.unwrap_or_else(|| Record { name: name.to_string(), ..Record::default() }))
    }

    /// # Errors
    /// The database is damaged.
    pub fn list(&self) -> Result<Vec<Record>> {
        Ok(self.store.list_below::<Record>(kind::NAMESPACE, "", "")?.into_iter().map(|(_, record)| record).collect())
    }

    /// # Errors
    /// `AlreadyExists`.
    pub fn create(&self, name: &Namespace, labels: Labels) -> Result<Record> {
        check_labels(&labels)?;
        let record = Record { name: name.to_string(), labels };
        self.store.change(|rows| {
            if rows.get_global::<Record>(kind::NAMESPACE, name.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("namespace {:?}", name.as_str())));
            }
            rows.put_global(kind::NAMESPACE, name.as_str(), &record)
        })?;
        Ok(record)
    }

    /// Sets labels; makes the namespace if it is not there, as its first row would: clients set their defaults first.
    ///
    /// # Errors
    /// `InvalidArgument` for anything but labels.
    pub fn update(&self, name: &Namespace, labels: &Labels, mask: &[String]) -> Result<Record> {
        self.store.change(|rows| {
            let new = || Record { name: name.to_string(), labels: Labels::new() };
            let mut record: Record = rows.get_global(kind::NAMESPACE, name.as_str())?.unwrap_or_else(new);
            update_labels(&mut record.labels, labels, mask)?;
            rows.put_global(kind::NAMESPACE, name.as_str(), &record)?;
            Ok(record)
        })
    }

    /// # Errors
    /// `NotFound`; `FailedPrecondition` naming what is left in it.
    pub fn delete(&self, name: &Namespace) -> Result<()> {
        self.store.change(|rows| {
            let mut left = Vec::new();
            for (kind, word) in KEEPING {
                if !rows.names(kind, name.as_str(), "")?.is_empty() {
                    left.push(*word);
                }
            }
            if !left.is_empty() {
                let left = left.join(", ");
                return Err(Error::FailedPrecondition(format!(
                    "namespace {:?} must be empty, but it still has {left}",
                    name.as_str()
                )));
            }
            // Leases without anything to hold go along.
            for kind in [kind::RESOURCE, kind::LEASE] {
                for row in rows.names(kind, name.as_str(), "")? {
                    rows.remove(kind, name.as_str(), &row)?;
                }
            }
            if rows.remove(kind::NAMESPACE, "", name.as_str())? { Ok(()) } else { Err(missing(name)) }
        })
    }
}

fn missing(name: &Namespace) -> Error {
    Error::NotFound(format!("namespace {:?}", name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tare_proto::containerd::services::leases::v1::Lease;

    #[test]
    fn a_namespace_comes_with_its_first_row_and_goes_when_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let namespaces = Namespaces::new(store.clone());
        let name = Namespace::parse("n").unwrap();
        assert!(matches!(namespaces.delete(&name), Err(Error::NotFound(_))));
        store
            .change(|rows| {
                rows.put(kind::IMAGE, &name, "i", &())?;
                rows.put(kind::LEASE, &name, "l", &Lease::default())
            })
            .unwrap();
        assert_eq!(namespaces.get(&name).unwrap().name, "n");
        let Err(Error::FailedPrecondition(said)) = namespaces.delete(&name) else { panic!() };
        assert_eq!(said, "namespace \"n\" must be empty, but it still has images");
        store.change(|rows| rows.remove(kind::IMAGE, "n", "i")).unwrap();
        namespaces.delete(&name).unwrap();
        assert!(namespaces.list().unwrap().is_empty());
        assert!(store.list::<Lease>(kind::LEASE, &name).unwrap().is_empty());
    }

    #[test]
    fn labels_are_made_changed_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let namespaces = Namespaces::new(Store::open(&dir.path().join("db")).unwrap());
        let name = Namespace::parse("n").unwrap();
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        namespaces.create(&name, labels(&[("a", "1"), ("b", "2")])).unwrap();
        let updated = namespaces.update(&name, &labels(&[("a", "")]), &["labels.a".into()]).unwrap();
        assert_eq!(updated.labels, labels(&[("b", "2")]));
        assert!(matches!(namespaces.create(&name, Labels::new()), Err(Error::AlreadyExists(_))));
        assert!(matches!(namespaces.update(&name, &Labels::new(), &["name".into()]), Err(Error::InvalidArgument(_))));
    }
}
