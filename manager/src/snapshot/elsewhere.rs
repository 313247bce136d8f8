//! What the store does for a snapshotter in a program of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use tare_proto::containerd::services::snapshots::v1::{Info, Kind};
use tare_proto::containerd::types::Mount;

use super::remote::Remote;
use super::{FOR_SNAPSHOTTERS, REFERENCE, Row, Snapshots, check_active, check_parent, missing, name, rows};
use crate::error::{Error, Result};
use crate::names::{Labels, Namespace};
use crate::store::kind;

/// What a snapshotter is told of a snapshot's labels. Source: containerd core/snapshots, `FilterInheritedLabels`.
fn told(labels: &Labels) -> Labels {
    let wanted = |(key, _): &(&String, &String)| *key == REFERENCE || key.starts_with(FOR_SNAPSHOTTERS);
    labels.iter().filter(wanted).map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Row {
    /// The name by which the other side knows it.
    fn known_as(&self, namespace: &Namespace) -> String {
        let key = self.info.as_ref().map_or("", |info| info.name.as_str());
        if self.elsewhere.is_empty() { format!("{namespace}/{}/{key}", self.number) } else { self.elsewhere.clone() }
    }
}

impl Snapshots {
    pub(super) fn prepare_elsewhere(
        &self,
        remote: &Remote,
        namespace: &Namespace,
        (key, parent): (&str, &str),
        labels: &Labels,
        view: bool,
    ) -> Result<Vec<Mount>> {
        let below = match parent {
            "" => String::new(),
            parent => {
                let row = self.store.get::<Row>(kind::SNAPSHOT, namespace, &name(&remote.name, parent))?;
                let row = row.ok_or_else(|| Error::NotFound(format!("parent snapshot {parent} does not exist")))?;
                row.known_as(namespace)
            }
        };
        let now = SystemTime::now();
        let info = Info {
            name: key.into(),
            parent: parent.into(),
            kind: if view { Kind::View } else { Kind::Active }.into(),
            created_at: Some(now.into()),
            updated_at: Some(now.into()),
            labels: labels.clone(),
        };
        // Never used twice: a key that was removed and comes again is another snapshot there.
        let number = now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
        let row = Row { info: Some(info), number, ..Row::default() };
        let known = row.known_as(namespace);
        let mounts = match remote.prepare(namespace, known.clone(), below.clone(), told(labels), view) {
            Err(Error::AlreadyExists(said)) => {
                let target = labels.get(REFERENCE).ok_or(Error::Unknown(said))?;
                self.adopt(remote, namespace, target, (parent, &below), labels)?;
                return Err(Error::AlreadyExists(format!("target snapshot {target:?} from snapshotter")));
            }
            answer => answer?,
        };
        let stored = self.store.change(|rows| {
            check_parent(rows, namespace, &remote.name, parent)?;
            if rows.get::<Row>(kind::SNAPSHOT, namespace, &name(&remote.name, key))?.is_some() {
                return Err(Error::AlreadyExists(format!("snapshot {key:?}")));
            }
            rows::put(rows, namespace, &remote.name, &row)
        });
        if stored.is_err()
            && let Err(left) = remote.remove(namespace, known)
        {
            tracing::warn!(%namespace, key, "removing what was made for nothing: {left}");
        }
        stored.map(|()| mounts)
    }

    /// Takes in a layer that the other side has already.
    fn adopt(
        &self,
        remote: &Remote,
        namespace: &Namespace,
        target: &str,
        (parent, below): (&str, &str),
        labels: &Labels,
    ) -> Result<()> {
        let found = remote.find(namespace, target, below)?;
        let found = found.ok_or_else(|| Error::NotFound(format!("target snapshot {target:?} in {}", remote.name)))?;
        let mut all = found.labels;
        all.extend(labels.clone());
        let elsewhere = found.name;
        let info = Info {
            name: target.into(),
            parent: parent.into(),
            kind: Kind::Committed.into(),
            created_at: found.created_at,
            updated_at: found.updated_at,
            labels: all,
        };
        let row = Row { info: Some(info), elsewhere, ..Row::default() };
        self.store.change(|rows| {
            check_parent(rows, namespace, &remote.name, parent)?;
            match rows.get::<Row>(kind::SNAPSHOT, namespace, &name(&remote.name, target))? {
                Some(_) => Ok(()), // somebody else was told of it first
                None => rows::put(rows, namespace, &remote.name, &row),
            }
        })
    }

    pub(super) fn commit_elsewhere(
        &self,
        remote: &Remote,
        namespace: &Namespace,
        (new, key): (&str, &str),
        labels: &Labels,
    ) -> Result<()> {
        let before: Row =
            self.store.get(kind::SNAPSHOT, namespace, &name(&remote.name, key))?.ok_or_else(|| missing(key))?;
        check_active(&before, key)?;
        if self.store.get::<Row>(kind::SNAPSHOT, namespace, &name(&remote.name, new))?.is_some() {
            return Err(Error::AlreadyExists(format!("snapshot {new:?}")));
        }
        let mut row = before.clone();
        let info = row.info.get_or_insert_default();
        info.name = new.into();
        info.set_kind(Kind::Committed);
        let now = Some(SystemTime::now().into());
        (info.created_at, info.updated_at, info.labels) = (now, now, labels.clone());
        row.elsewhere = String::new();
        remote.commit(namespace, row.known_as(namespace), before.known_as(namespace), told(labels))?;
        self.store.change(|rows| {
            rows::remove(rows, namespace, &remote.name, key)?;
            rows::put(rows, namespace, &remote.name, &row)
        })
    }

    pub(super) fn remove_elsewhere(&self, remote: &Remote, namespace: &Namespace, key: &str) -> Result<()> {
        let row = self.store.change(|rows| {
            if rows::has_children(rows, namespace, &remote.name, key)? {
                return Err(Error::FailedPrecondition("cannot remove snapshot with child".into()));
            }
            rows::remove(rows, namespace, &remote.name, key)?.ok_or_else(|| missing(key))
        })?;
        self.discard_elsewhere(remote, namespace, &row)
    }

    /// Removes what the other side has of a row that went, unless another namespace has it too.
    pub(super) fn discard_elsewhere(&self, remote: &Remote, namespace: &Namespace, row: &Row) -> Result<()> {
        if !row.elsewhere.is_empty() {
            for other in self.store.namespaces()? {
                let rows = self.store.list_below::<Row>(kind::SNAPSHOT, other.as_str(), &name(&remote.name, ""))?;
                if rows.iter().any(|(_, other)| other.elsewhere == row.elsewhere) {
                    return Ok(());
                }
            }
        }
        match remote.remove(namespace, row.known_as(namespace)) {
            Err(Error::NotFound(_)) => Ok(()),
            answer => answer,
        }
    }

    pub(super) fn relabel_elsewhere(&self, remote: &Remote, namespace: &Namespace, info: &Info) -> Result<()> {
        let row = self.row(namespace, &remote.name, &info.name)?;
        remote.relabel(namespace, row.known_as(namespace), told(&info.labels))
    }

    pub(super) fn usage_elsewhere(&self, remote: &Remote, namespace: &Namespace, row: &Row) -> Result<(i64, i64)> {
        remote.usage(namespace, row.known_as(namespace))
    }

    pub(super) fn mounts_elsewhere(&self, remote: &Remote, namespace: &Namespace, row: &Row) -> Result<Vec<Mount>> {
        remote.mounts(namespace, row.known_as(namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshotter_is_told_of_the_labels_that_are_for_it() {
        let labels = [(REFERENCE, "r"), ("containerd.io/snapshot/cri.image-ref", "i"), ("containerd.io/gc.root", "x")];
        let labels: Labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut kept: Vec<_> = told(&labels).into_keys().collect();
        kept.sort();
        assert_eq!(kept, [REFERENCE, "containerd.io/snapshot/cri.image-ref"]);
    }

    #[test]
    fn a_snapshot_is_known_by_namespace_number_and_key_unless_it_was_there_before() {
        let (ns, info) = (Namespace::parse("n").unwrap(), Info { name: "key".into(), ..Info::default() });
        let mut row = Row { info: Some(info), number: 7, ..Row::default() };
        assert_eq!(row.known_as(&ns), "n/7/key");
        row.elsewhere = "sha256:x".into();
        assert_eq!(row.known_as(&ns), "sha256:x");
    }
}
