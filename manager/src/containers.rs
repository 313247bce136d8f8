//! Containers as records: image, runtime, specification, snapshot. What runs of them are tasks.

use std::time::SystemTime;

use tare_proto::containerd::services::containers::v1::Container;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::names::{Id, Namespace, check_labels, update_labels};
use crate::store::{Store, kind};

#[derive(Clone)]
pub struct Containers {
    store: Store,
}

impl Containers {
    pub fn new(store: Store) -> Containers {
        Containers { store }
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, namespace: &Namespace, id: &Id) -> Result<Container> {
        self.store.get(kind::CONTAINER, namespace, id.as_str())?.ok_or_else(|| missing(namespace, id))
    }

    /// # Errors
    /// A filter cannot be read.
    pub fn list(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Container>> {
        let filter = Filter::parse(filters)?;
        let rows = self.store.list::<Container>(kind::CONTAINER, namespace)?.into_iter().map(|(_, row)| row);
        Ok(rows.filter(|container| filter.matches(|path| field(container, path))).collect())
    }

    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` naming what is missing.
    pub fn create(&self, namespace: &Namespace, container: Container) -> Result<Container> {
        let wrong = |error: Error| error.under("create container failed validation");
        let id = Id::parse(&container.id).map_err(|error| wrong(error.under("container.ID")))?;
        check(&container).map_err(wrong)?;
        let now = Some(SystemTime::now().into());
        let container = Container { created_at: now, updated_at: now, ..container };
        self.store.change(|rows| {
            if rows.get::<Container>(kind::CONTAINER, namespace, id.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("container {:?}", container.id)));
            }
            rows.put(kind::CONTAINER, namespace, id.as_str(), &container)
        })?;
        Ok(container)
    }

    /// Changes what the mask names, or without one all that can be changed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot be changed.
    pub fn update(&self, namespace: &Namespace, given: &Container, mask: &[String]) -> Result<Container> {
        let id = Id::parse(&given.id)?;
        self.store.change(|rows| {
            let mut container: Container =
                rows.get(kind::CONTAINER, namespace, id.as_str())?.ok_or_else(|| missing(namespace, &id))?;
            apply(&mut container, given, mask)?;
            check(&container)?;
            container.updated_at = Some(SystemTime::now().into());
            rows.put(kind::CONTAINER, namespace, id.as_str(), &container)?;
            Ok(container)
        })
    }

    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        let there = self.store.change(|rows| rows.remove(kind::CONTAINER, namespace.as_str(), id.as_str()))?;
        if there { Ok(()) } else { Err(missing(namespace, id)) }
    }
}

fn missing(namespace: &Namespace, id: &Id) -> Error {
    Error::NotFound(format!("container {:?} in namespace {:?}", id.as_str(), namespace.as_str()))
}

fn check(container: &Container) -> Result<()> {
    let required = |field: &str| Err(Error::InvalidArgument(format!("container.{field} must be set")));
    check_labels(&container.labels)?;
    if container.runtime.as_ref().is_none_or(|runtime| runtime.name.is_empty()) {
        return required("Runtime.Name");
    }
    if container.spec.is_none() {
        return required("Spec");
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return required("Snapshotter, with SnapshotKey,");
    }
    Ok(())
}

fn apply(container: &mut Container, given: &Container, mask: &[String]) -> Result<()> {
    let fixed =
        |field: &str| Err(Error::InvalidArgument(format!("container {:?}: {field} cannot be changed", given.id)));
    if mask.is_empty() {
        if !given.snapshotter.is_empty() && container.snapshotter != given.snapshotter {
            return fixed("snapshotter");
        }
        let name = |container: &Container| container.runtime.as_ref().map(|runtime| runtime.name.clone());
        if given.runtime.is_some() && name(container) != name(given) {
            return fixed("runtime.name");
        }
        container.spec.clone_from(&given.spec);
        container.image.clone_from(&given.image);
        container.snapshot_key.clone_from(&given.snapshot_key);
        container.extensions.clone_from(&given.extensions);
        return update_labels(&mut container.labels, &given.labels, &[]);
    }
    for path in mask {
        match path.as_str() {
            "spec" => container.spec.clone_from(&given.spec),
            "image" => container.image.clone_from(&given.image),
            "snapshotkey" => container.snapshot_key.clone_from(&given.snapshot_key),
            "extensions" => container.extensions.clone_from(&given.extensions),
            path if path.starts_with("extensions.") => {
                let key = &path["extensions.".len()..];
                match given.extensions.get(key) {
                    Some(value) => container.extensions.insert(key.to_owned(), value.clone()),
                    None => container.extensions.remove(key),
                };
            }
            path if path == "labels" || path.starts_with("labels.") => {
                update_labels(&mut container.labels, &given.labels, &[path.to_owned()])?;
            }
            path => return fixed(path),
        }
    }
    Ok(())
}

fn field(container: &Container, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "id" => Some(container.id.clone()),
        [first] if first == "image" => Some(container.image.clone()),
        [first, second] if first == "runtime" && second == "name" => Some(container.runtime.as_ref()?.name.clone()),
        [first, rest @ ..] if first == "labels" => container.labels.get(&rest.join(".")).cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tare_proto::containerd::services::containers::v1::container::Runtime;

    fn container(id: &str) -> Container {
        Container {
            id: id.into(),
            runtime: Some(Runtime { name: "io.containerd.tare.v2".into(), options: None }),
            spec: Some(prost_types::Any::default()),
            ..Container::default()
        }
    }

    fn containers() -> (tempfile::TempDir, Containers, Namespace) {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::new(Store::open(&dir.path().join("db")).unwrap());
        (dir, containers, Namespace::parse("n").unwrap())
    }

    #[test]
    fn a_container_is_found_by_id_and_by_what_filters_ask() {
        let (_dir, containers, ns) = containers();
        let labels = [("a.b".to_owned(), "c".to_owned())].into();
        let made = containers.create(&ns, Container { labels, ..container("one") }).unwrap();
        assert!(matches!(containers.create(&ns, container("one")), Err(Error::AlreadyExists(_))));
        containers.create(&ns, container("two")).unwrap();
        assert_eq!(containers.get(&ns, &Id::parse("one").unwrap()).unwrap(), made);
        for (filter, count) in [("id==one", 1), ("labels.\"a.b\"==c", 1), ("runtime.name~=tare", 2), ("image==x", 0)] {
            assert_eq!(containers.list(&ns, &[filter.into()]).unwrap().len(), count, "{filter}");
        }
        assert!(containers.list(&Namespace::parse("other").unwrap(), &[]).unwrap().is_empty());
        containers.delete(&ns, &Id::parse("one").unwrap()).unwrap();
        assert!(matches!(containers.delete(&ns, &Id::parse("one").unwrap()), Err(Error::NotFound(_))));
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_name() {
        let (_dir, containers, ns) = containers();
        containers.create(&ns, container("one")).unwrap();
        let image = Container { image: "i".into(), ..container("one") };
        assert_eq!(containers.update(&ns, &image, &["image".into()]).unwrap().image, "i");
        let runtime = Some(Runtime { name: "io.containerd.runc.v2".into(), options: None });
        for (given, mask) in [
            (Container { runtime, ..container("one") }, vec![]),
            (Container { snapshotter: "native".into(), ..container("one") }, vec![]),
            (container("one"), vec!["created_at".to_owned()]),
        ] {
            assert!(matches!(containers.update(&ns, &given, &mask), Err(Error::InvalidArgument(_))), "{mask:?}");
        }
        for bad in [
            Container { spec: None, ..container("x") },
            Container { runtime: None, ..container("x") },
            Container { snapshot_key: "k".into(), ..container("x") },
            container("../x"),
            Container::default(),
        ] {
            assert!(matches!(containers.create(&ns, bad), Err(Error::InvalidArgument(_))));
        }
    }
}
