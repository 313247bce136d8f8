//! Sandboxes as records.

use std::time::SystemTime;

use tare_proto::containerd::types::Sandbox;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::names::{Id, Namespace, check_labels, update_labels};
use crate::store::{Store, kind};

#[derive(Clone)]
pub struct Records {
    store: Store,
}

impl Records {
    pub fn new(store: Store) -> Records {
        Records { store }
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, namespace: &Namespace, id: &Id) -> Result<Sandbox> {
        self.store.get(kind::SANDBOX, namespace, id.as_str())?.ok_or_else(|| missing(id))
    }

    /// # Errors
    /// A filter cannot be read.
    pub fn list(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Sandbox>> {
        let filter = Filter::parse(filters)?;
        let rows = self.store.list::<Sandbox>(kind::SANDBOX, namespace)?.into_iter().map(|(_, row)| row);
        Ok(rows.filter(|sandbox| filter.matches(|path| field(sandbox, path))).collect())
    }

    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for a name that is none.
    pub fn create(&self, namespace: &Namespace, sandbox: Sandbox) -> Result<Sandbox> {
        let id = Id::parse(&sandbox.sandbox_id)?;
        check_labels(&sandbox.labels)?;
        let now = Some(SystemTime::now().into());
        let sandbox = Sandbox { created_at: now, updated_at: now, ..sandbox };
        self.store.change(|rows| {
            if rows.get::<Sandbox>(kind::SANDBOX, namespace, id.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("sandbox {id}")));
            }
            rows.put(kind::SANDBOX, namespace, id.as_str(), &sandbox)
        })?;
        Ok(sandbox)
    }

    /// Changes what `fields` name, or without any all that can be changed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot be changed.
    pub fn update(&self, namespace: &Namespace, given: &Sandbox, fields: &[String]) -> Result<Sandbox> {
        let id = Id::parse(&given.sandbox_id)?;
        self.store.change(|rows| {
            let mut sandbox: Sandbox = rows.get(kind::SANDBOX, namespace, id.as_str())?.ok_or_else(|| missing(&id))?;
            apply(&mut sandbox, given, fields)?;
            check_labels(&sandbox.labels)?;
            sandbox.updated_at = Some(SystemTime::now().into());
            rows.put(kind::SANDBOX, namespace, id.as_str(), &sandbox)?;
            Ok(sandbox)
        })
    }

    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        let there = self.store.change(|rows| rows.remove(kind::SANDBOX, namespace.as_str(), id.as_str()))?;
        if there { Ok(()) } else { Err(missing(id)) }
    }
}

fn missing(id: &Id) -> Error {
    Error::NotFound(format!("sandbox {id}"))
}

fn apply(sandbox: &mut Sandbox, given: &Sandbox, fields: &[String]) -> Result<()> {
    let fixed =
        |field: &str| Err(Error::InvalidArgument(format!("sandbox {:?}: {field} cannot be changed", given.sandbox_id)));
    if fields.is_empty() {
        let name = |sandbox: &Sandbox| sandbox.runtime.as_ref().map(|runtime| runtime.name.clone());
        if name(sandbox) != name(given) {
            return fixed("runtime.name");
        }
        let all = ["labels", "extensions", "spec", "runtime"].map(str::to_owned);
        return apply(sandbox, given, &all);
    }
    for path in fields {
        match path.as_str() {
            "extensions" => sandbox.extensions.clone_from(&given.extensions),
            "spec" => sandbox.spec.clone_from(&given.spec),
            "runtime" => sandbox.runtime.clone_from(&given.runtime),
            path if path == "labels" || path.starts_with("labels.") => {
                update_labels(&mut sandbox.labels, &given.labels, &[path.to_owned()])?;
            }
            path => match path.strip_prefix("extensions.") {
                Some(key) => {
                    match given.extensions.get(key) {
                        Some(value) => sandbox.extensions.insert(key.to_owned(), value.clone()),
                        None => sandbox.extensions.remove(key),
                    };
                }
                None => return fixed(path),
            },
        }
    }
    Ok(())
}

fn field(sandbox: &Sandbox, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "id" => Some(sandbox.sandbox_id.clone()),
        [first, rest @ ..] if first == "labels" => sandbox.labels.get(&rest.join(".")).cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tare_proto::containerd::types::sandbox::Runtime;

    fn sandbox(id: &str) -> Sandbox {
        let runtime = Some(Runtime { name: "io.containerd.tare.v2".into(), options: None });
        Sandbox { sandbox_id: id.into(), runtime, ..Sandbox::default() }
    }

    #[test]
    fn a_record_is_found_changed_by_field_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(Store::open(&dir.path().join("db")).unwrap());
        let (ns, id) = (Namespace::parse("n").unwrap(), Id::parse("pod").unwrap());
        let labels = [("tier".to_owned(), "web".to_owned())].into();
        records.create(&ns, Sandbox { labels, sandboxer: "shim".into(), ..sandbox("pod") }).unwrap();
        assert!(matches!(records.create(&ns, sandbox("pod")), Err(Error::AlreadyExists(_))));
        for (filter, count) in [("id==pod", 1), ("labels.tier==web", 1), ("labels.tier==db", 0)] {
            assert_eq!(records.list(&ns, &[filter.into()]).unwrap().len(), count, "{filter}");
        }
        let extension = prost_types::Any { type_url: "t".into(), value: vec![1] };
        let given = Sandbox { extensions: [("e.x".to_owned(), extension)].into(), ..sandbox("pod") };
        let changed = records.update(&ns, &given, &["extensions.e.x".into()]).unwrap();
        assert_eq!((changed.extensions.len(), changed.labels.len(), changed.sandboxer.as_str()), (1, 1, "shim"));
        for (given, fields) in
            [(sandbox("pod"), vec!["created_at".to_owned()]), (Sandbox { runtime: None, ..sandbox("pod") }, vec![])]
        {
            assert!(matches!(records.update(&ns, &given, &fields), Err(Error::InvalidArgument(_))), "{fields:?}");
        }
        records.delete(&ns, &id).unwrap();
        assert!(matches!(records.get(&ns, &id), Err(Error::NotFound(_))));
        assert!(matches!(records.delete(&ns, &id), Err(Error::NotFound(_))));
    }
}
