//! Leases: what one of them holds is not collected, for as long as it lives.

use std::time::SystemTime;

use tare_proto::containerd::services::leases::v1::{Lease, Resource};

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::gc;
use crate::names::{Labels, LeaseId, Namespace, check_labels};
use crate::store::{Store, kind};

#[derive(Clone)]
pub struct Leases {
    store: Store,
}

impl Leases {
    pub fn new(store: Store) -> Leases {
        Leases { store }
    }

    /// # Errors
    /// `AlreadyExists`.
    pub fn create(&self, namespace: &Namespace, id: &LeaseId, labels: Labels) -> Result<Lease> {
        check_labels(&labels)?;
        let lease = Lease { id: id.to_string(), created_at: Some(SystemTime::now().into()), labels };
        self.store.change(|rows| {
            if rows.get::<Lease>(kind::LEASE, namespace, id.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("lease {:?}", id.as_str())));
            }
            rows.put(kind::LEASE, namespace, id.as_str(), &lease)
        })?;
        Ok(lease)
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, namespace: &Namespace, id: &LeaseId) -> Result<Lease> {
        let missing = || Error::NotFound(format!("lease {:?}", id.as_str()));
        self.store.get(kind::LEASE, namespace, id.as_str())?.ok_or_else(missing)
    }

    /// # Errors
    /// A filter cannot be read.
    pub fn list(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Lease>> {
        let filter = Filter::parse(filters)?;
        let leases = self.store.list::<Lease>(kind::LEASE, namespace)?.into_iter().map(|(_, lease)| lease);
        Ok(leases.filter(|lease| filter.matches(|path| field(lease, path))).collect())
    }

    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, namespace: &Namespace, id: &LeaseId) -> Result<()> {
        self.get(namespace, id)?;
        gc::release(&self.store, namespace, id.as_str())
    }

    /// Makes the lease hold something, be it there already or not.
    ///
    /// # Errors
    /// `NotFound` the lease; `Unimplemented` a type that no lease holds.
    pub fn add(&self, namespace: &Namespace, id: &LeaseId, resource: &Resource) -> Result<()> {
        self.get(namespace, id)?;
        check(resource)?;
        gc::hold(&self.store, namespace, id.as_str(), &[(&resource.r#type, resource.id.clone())])
    }

    /// # Errors
    /// `NotFound` the lease; `Unimplemented` a type that no lease holds.
    pub fn remove(&self, namespace: &Namespace, id: &LeaseId, resource: &Resource) -> Result<()> {
        self.get(namespace, id)?;
        check(resource)?;
        let name = format!("{id}\0{}\0{}", resource.r#type, resource.id);
        self.store.change(|rows| rows.remove(kind::RESOURCE, namespace.as_str(), &name)).map(|_| ())
    }

    /// # Errors
    /// `NotFound` the lease.
    pub fn resources(&self, namespace: &Namespace, id: &LeaseId) -> Result<Vec<Resource>> {
        self.get(namespace, id)?;
        let begin = format!("{id}\0");
        let rows = self.store.list_below::<Resource>(kind::RESOURCE, namespace.as_str(), &begin)?;
        Ok(rows.into_iter().map(|(_, resource)| resource).collect())
    }
}

fn check(resource: &Resource) -> Result<()> {
    let known = matches!(resource.r#type.as_str(), "content" | "ingests" | "images")
        || resource.r#type.strip_prefix("snapshots/").is_some_and(|snapshotter| !snapshotter.is_empty());
    if !known {
        return Err(Error::Unimplemented(format!("resource type {:?}", resource.r#type)));
    }
    if resource.id.is_empty() {
        return Err(Error::InvalidArgument(format!("a resource of type {:?} must have an id", resource.r#type)));
    }
    Ok(())
}

fn field(lease: &Lease, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "id" => Some(lease.id.clone()),
        [first, rest @ ..] if first == "labels" => lease.labels.get(&rest.join(".")).cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lists_what_it_holds_and_takes_it_along() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::new(Store::open(&dir.path().join("db")).unwrap());
        let (ns, id) = (Namespace::parse("n").unwrap(), LeaseId::parse("l").unwrap());
        let resource = |kind: &str, id: &str| Resource { id: id.into(), r#type: kind.into() };
        assert!(matches!(leases.add(&ns, &id, &resource("content", "x")), Err(Error::NotFound(_))));
        leases.create(&ns, &id, Labels::from([("a".into(), "b".into())])).unwrap();
        assert!(matches!(leases.create(&ns, &id, Labels::new()), Err(Error::AlreadyExists(_))));
        for (kind, name) in [("content", "x"), ("snapshots/overlayfs", "y"), ("content", "x")] {
            leases.add(&ns, &id, &resource(kind, name)).unwrap();
        }
        assert!(matches!(leases.add(&ns, &id, &resource("dreams", "x")), Err(Error::Unimplemented(_))));
        assert!(matches!(leases.add(&ns, &id, &resource("content", "")), Err(Error::InvalidArgument(_))));
        assert_eq!(leases.resources(&ns, &id).unwrap().len(), 2);
        leases.remove(&ns, &id, &resource("content", "x")).unwrap();
        assert_eq!(leases.resources(&ns, &id).unwrap(), vec![resource("snapshots/overlayfs", "y")]);
        assert_eq!(leases.list(&ns, &["labels.a==b".into()]).unwrap().len(), 1);
        leases.delete(&ns, &id).unwrap();
        leases.create(&ns, &id, Labels::new()).unwrap();
        assert!(leases.resources(&ns, &id).unwrap().is_empty());
    }
}
