//! Snapshots: the layers of file systems, by key, each on its parent.
//!
//! ```text
//!            prepare                    commit
//!  parent ───────────▶ active (a key) ─────────▶ committed (a name) ───▶ parent of others
//!            view
//!  parent ───────────▶ view (a key): as active, but never written and never committed
//! ```
//!
//! A [`Snapshotter`] knows how a layer lies on disk and is mounted; keys, parents and times are rows, the same for all.
//! A layer's folder is made first and its row last; a folder without a row is removed. A key is free text and never a
//! path: the folder has a number.

#[cfg(test)]
mod contract;
mod elsewhere;
mod folders;
pub mod ids;
mod native;
mod overlay;
mod remote;
pub(crate) mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tare_proto::containerd::services::snapshots::v1::{Info, Kind};
use tare_proto::containerd::types::Mount;

use crate::error::{Error, Result};
use crate::layer::Removals;
use crate::names::{Labels, Namespace, check_labels};
use crate::store::{Rows, Store, kind};
use folders::Folders;
pub use remote::Remote;

/// The name that clients know it by.
pub const OVERLAY: &str = "overlayfs";
/// A copy of the parent for each layer: needs nothing of the kernel.
pub const NATIVE: &str = "native";

/// Says of a layer's snapshot which chain of layers it stands for: a snapshotter that can get it elsewhere looks there.
pub const REFERENCE: &str = "containerd.io/snapshot.ref";

/// Labels that are for the snapshotter begin so; others are the client's own affair.
pub const FOR_SNAPSHOTTERS: &str = "containerd.io/snapshot/";

/// How layers lie on disk and are put together. A layer's own files are in `fs` in its folder.
///
/// `make` is called once, in a new folder; then `mounts` as often as somebody wants to mount it. `lower` are the `fs` folders
/// of all parents, top first; they are never written to.
trait Snapshotter: Send + Sync {
    /// Makes what a layer begins with.
    fn make(&self, folder: &Path, lower: &[PathBuf], view: bool) -> Result<()>;

    /// What to mount to see the layer on its parents.
    fn mounts(&self, folder: &Path, lower: &[PathBuf], view: bool) -> Vec<Mount>;

    /// Whether a layer holds only what differs from its parent, so that it can be put on another at its commit.
    fn holds_differences(&self) -> bool;
}

/// A snapshot's row.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Row {
    /// What clients see.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
    /// The folder.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Of the layer alone, when it was committed.
    #[prost(int64, tag = "3")]
    pub size: i64,
    #[prost(int64, tag = "4")]
    pub inodes: i64,
    /// What a snapshotter in another program calls it, if that had it before we did.
    #[prost(string, tag = "5")]
    pub elsewhere: String,
}

struct Engine {
    name: &'static str,
    snapshotter: Box<dyn Snapshotter>,
    folders: Folders,
}

/// Where a snapshotter does its work.
enum Place<'p> {
    Here(&'p Engine),
    Elsewhere(&'p Remote),
}

#[derive(Clone)]
pub struct Snapshots {
    engines: Arc<[Engine]>,
    remotes: Arc<[Remote]>,
    store: Store,
}

/// A row's name.
pub fn name(snapshotter: &str, key: &str) -> String {
    format!("{snapshotter}\0{key}")
}

fn missing(key: &str) -> Error {
    Error::NotFound(format!("snapshot {key} does not exist"))
}

impl Snapshots {
    /// Opens the snapshots below `root`, and removes folders that no row names.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn open(root: &Path, store: Store) -> Result<Snapshots> {
        let root = root.join("snapshots");
        let engines: Vec<Engine> = vec![
            Engine {
                name: OVERLAY,
                snapshotter: Box::new(overlay::Overlay::new()),
                folders: Folders::open(&root.join(OVERLAY))?,
            },
            Engine { name: NATIVE, snapshotter: Box::new(native::Native), folders: Folders::open(&root.join(NATIVE))? },
        ];
        let snapshots = Snapshots { engines: engines.into(), remotes: Arc::new([]), store };
        snapshots.sweep()?;
        Ok(snapshots)
    }

    /// The same, with snapshotters in programs of their own beside them.
    #[must_use]
    pub fn beside(self, remotes: impl IntoIterator<Item = Remote>) -> Snapshots {
        Snapshots { remotes: remotes.into_iter().collect(), ..self }
    }

    /// # Errors
    /// `InvalidArgument`: there is no such snapshotter.
    pub fn check(&self, snapshotter: &str) -> Result<()> {
        self.place(snapshotter).map(|_| ())
    }

    fn place(&self, snapshotter: &str) -> Result<Place<'_>> {
        let elsewhere = || self.remotes.iter().find(|remote| remote.name == snapshotter).map(Place::Elsewhere);
        let here = self.engines.iter().find(|engine| engine.name == snapshotter).map(Place::Here);
        here.or_else(elsewhere).ok_or_else(|| Error::InvalidArgument(format!("snapshotter not loaded: {snapshotter}")))
    }

    /// The one whose folders are ours to work in.
    fn overlay(&self) -> &Engine {
        self.engines.iter().find(|engine| engine.name == OVERLAY).expect("the overlay is always there")
    }

    /// # Errors
    /// `NotFound`.
    pub fn row(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Row> {
        self.check(snapshotter)?;
        self.store.get(kind::SNAPSHOT, namespace, &name(snapshotter, key))?.ok_or_else(|| missing(key))
    }

    /// # Errors
    /// `NotFound`.
    pub fn info(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Info> {
        Ok(self.row(namespace, snapshotter, key)?.info.unwrap_or_default())
    }

    /// # Errors
    /// The database is damaged.
    pub fn list(&self, namespace: &Namespace, snapshotter: &str) -> Result<Vec<Info>> {
        self.check(snapshotter)?;
        let rows = self.store.list_below::<Row>(kind::SNAPSHOT, namespace.as_str(), &name(snapshotter, ""))?;
        Ok(rows.into_iter().filter_map(|(_, row)| row.info).collect())
    }

    /// Makes a layer on `parent`, writable or for looking only, and gives what to mount.
    ///
    /// # Errors
    /// `AlreadyExists` the key is used; `NotFound` the parent; `InvalidArgument` the parent is not committed.
    pub fn prepare(
        &self,
        namespace: &Namespace,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: &Labels,
        view: bool,
    ) -> Result<Vec<Mount>> {
        let place = self.place(snapshotter)?;
        check_labels(labels)?;
        if key.is_empty() {
            return Err(Error::InvalidArgument("snapshot key must not be empty".into()));
        }
        // Who unpacks a layer says which one it is to be: it may be here by now.
        if let Some(target) = labels.get(REFERENCE)
            && self.row(namespace, snapshotter, target).is_ok()
        {
            return Err(Error::AlreadyExists(format!("target snapshot {target:?}")));
        }
        if self.row(namespace, snapshotter, key).is_ok() {
            return Err(Error::AlreadyExists(format!("snapshot {key:?}")));
        }
        let engine = match place {
            Place::Here(engine) => engine,
            Place::Elsewhere(remote) => {
                return self.prepare_elsewhere(remote, namespace, (key, parent), labels, view);
            }
        };
        let lower = self.lower(namespace, engine, parent)?;
        let new = engine.folders.make()?;
        let now = Some(SystemTime::now().into());
        let info = Info {
            name: key.into(),
            parent: parent.into(),
            kind: if view { Kind::View } else { Kind::Active }.into(),
            created_at: now,
            updated_at: now,
            labels: labels.clone(),
        };
        let row = Row { info: Some(info), number: new.number(), ..Row::default() };
        engine.snapshotter.make(new.path(), &lower, view)?;
        ids::own(&engine.folders.layer(new.number()), labels)?;
        self.store.change(|rows| {
            // Both were looked at before, when somebody else could still change them.
            check_parent(rows, namespace, snapshotter, parent)?;
            if rows.get::<Row>(kind::SNAPSHOT, namespace, &name(snapshotter, key))?.is_some() {
                return Err(Error::AlreadyExists(format!("snapshot {key:?}")));
            }
            rows::put(rows, namespace, snapshotter, &row)
        })?;
        let mounts = ids::mapped(engine.snapshotter.mounts(new.path(), &lower, view), labels);
        new.keep();
        Ok(mounts)
    }

    /// The folders of a parent and all below it, top first.
    fn lower(&self, namespace: &Namespace, engine: &Engine, parent: &str) -> Result<Vec<PathBuf>> {
        let mut lower = Vec::new();
        let mut key = parent.to_owned();
        while !key.is_empty() {
            let row = self.row(namespace, engine.name, &key).map_err(|error| match error {
                Error::NotFound(_) => Error::NotFound(format!("parent snapshot {key} does not exist")),
                error => error,
            })?;
            let info = row.info.unwrap_or_default();
            if info.kind() != Kind::Committed {
                return Err(not_committed(&key));
            }
            lower.push(engine.folders.layer(row.number));
            key = info.parent;
        }
        Ok(lower)
    }

    /// Where an overlay layer's own files lie: it can be unpacked to without a mount.
    pub fn layer(&self, number: u64) -> PathBuf {
        self.overlay().folders.layer(number)
    }

    /// How removals are written in an overlay layer.
    pub fn removals(&self) -> Removals {
        if overlay::in_user_namespace() { Removals::UserOverlay } else { Removals::Overlay }
    }

    /// The folders of a committed overlay snapshot and all below it, top first.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn chain(&self, namespace: &Namespace, key: &str) -> Result<Vec<PathBuf>> {
        self.lower(namespace, self.overlay(), key)
    }

    /// What to mount for an active snapshot or a view.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` it is committed.
    pub fn mounts(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let place = self.place(snapshotter)?;
        let row = self.row(namespace, snapshotter, key)?;
        if row.info.as_ref().map(Info::kind) == Some(Kind::Committed) {
            return Err(Error::FailedPrecondition(format!("requested snapshot {key} not active or view")));
        }
        let engine = match place {
            Place::Here(engine) => engine,
            Place::Elsewhere(remote) => return self.mounts_elsewhere(remote, namespace, &row),
        };
        let info = row.info.unwrap_or_default();
        let lower = self.lower(namespace, engine, &info.parent)?;
        let mounts = engine.snapshotter.mounts(&engine.folders.folder(row.number), &lower, info.kind() == Kind::View);
        Ok(ids::mapped(mounts, &info.labels))
    }

    /// Freezes an active snapshot under a name of its own; the key is free again. A `parent` that is given becomes its
    /// parent: so layers can be unpacked side by side and put on one another at the end.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists` the name is used; `FailedPrecondition` it is not active; `Unimplemented` its snapshotter
    /// cannot put it on another parent.
    pub fn commit(
        &self,
        namespace: &Namespace,
        snapshotter: &str,
        new: &str,
        key: &str,
        labels: &Labels,
        parent: Option<&str>,
    ) -> Result<()> {
        let place = self.place(snapshotter)?;
        check_labels(labels)?;
        if new.is_empty() {
            return Err(Error::InvalidArgument("snapshot name must not be empty".into()));
        }
        let unable = || Error::Unimplemented(format!("another parent at commit with snapshotter {snapshotter}"));
        let engine = match (place, parent) {
            (Place::Here(engine), _) => engine,
            (Place::Elsewhere(_), Some(_)) => return Err(unable()),
            (Place::Elsewhere(remote), None) => return self.commit_elsewhere(remote, namespace, (new, key), labels),
        };
        let before = self.row(namespace, snapshotter, key)?;
        check_active(&before, key)?;
        if parent.is_some() && !engine.snapshotter.holds_differences() {
            return Err(unable());
        }
        let layer = engine.folders.layer(before.number);
        let (size, inodes) = folders::usage(&layer)?;
        folders::sync(&layer)?;
        self.store.change(|rows| {
            if rows.get::<Row>(kind::SNAPSHOT, namespace, &name(snapshotter, new))?.is_some() {
                return Err(Error::AlreadyExists(format!("snapshot {new:?}")));
            }
            let mut row: Row =
                rows.get(kind::SNAPSHOT, namespace, &name(snapshotter, key))?.ok_or_else(|| missing(key))?;
            check_active(&row, key)?;
            let info = row.info.get_or_insert_default();
            info.name = new.into();
            if let Some(parent) = parent {
                check_parent(rows, namespace, snapshotter, parent)?;
                info.parent = parent.into();
            }
            info.set_kind(Kind::Committed);
            // It is a new thing, as containerd has it: its times and labels are not those of what was written on.
            let now = Some(SystemTime::now().into());
            (info.created_at, info.updated_at, info.labels) = (now, now, labels.clone());
            (row.size, row.inodes) = (size, inodes);
            rows::remove(rows, namespace, snapshotter, key)?;
            rows::put(rows, namespace, snapshotter, &row)
        })
    }

    /// Removes a snapshot that nothing lies on.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` it has children.
    pub fn remove(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<()> {
        let engine = match self.place(snapshotter)? {
            Place::Here(engine) => engine,
            Place::Elsewhere(remote) => return self.remove_elsewhere(remote, namespace, key),
        };
        let number = self.store.change(|rows| {
            let row = Snapshots::remove_row(rows, namespace, snapshotter, key)?.ok_or_else(|| missing(key))?;
            Ok(row.number)
        })?;
        engine.folders.remove(number)
    }

    /// Removes a row as a part of a larger change, if it is there; what it was, to [`Snapshots::discard`] after.
    ///
    /// # Errors
    /// `FailedPrecondition`: other snapshots lie on it.
    pub(crate) fn remove_row(
        rows: &mut Rows<'_>,
        namespace: &Namespace,
        snapshotter: &str,
        key: &str,
    ) -> Result<Option<Row>> {
        if rows::has_children(rows, namespace, snapshotter, key)? {
            return Err(Error::FailedPrecondition("cannot remove snapshot with child".into()));
        }
        rows::remove(rows, namespace, snapshotter, key)
    }

    /// Changes a snapshot's labels.
    ///
    /// # Errors
    /// `NotFound`, or what `change` refuses.
    pub fn update(
        &self,
        namespace: &Namespace,
        snapshotter: &str,
        key: &str,
        change: impl FnOnce(&mut Labels) -> Result<()>,
    ) -> Result<Info> {
        let place = self.place(snapshotter)?;
        let info = self.store.change(|rows| {
            let mut row: Row =
                rows.get(kind::SNAPSHOT, namespace, &name(snapshotter, key))?.ok_or_else(|| missing(key))?;
            let info = row.info.get_or_insert_default();
            change(&mut info.labels)?;
            info.updated_at = Some(SystemTime::now().into());
            let info = info.clone();
            rows.put(kind::SNAPSHOT, namespace, &name(snapshotter, key), &row)?;
            Ok(info)
        })?;
        if let Place::Elsewhere(remote) = place {
            self.relabel_elsewhere(remote, namespace, &info)?;
        }
        Ok(info)
    }

    /// Bytes and inodes of the layer alone.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn usage(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<(i64, i64)> {
        let place = self.place(snapshotter)?;
        let row = self.row(namespace, snapshotter, key)?;
        let engine = match place {
            Place::Here(engine) => engine,
            Place::Elsewhere(remote) => return self.usage_elsewhere(remote, namespace, &row),
        };
        match row.info.as_ref().map(Info::kind) {
            Some(Kind::Committed) => Ok((row.size, row.inodes)),
            _ => folders::usage(&engine.folders.layer(row.number)),
        }
    }

    /// Whether a snapshot's own folder is there. Those of snapshotters in other programs are theirs to know.
    pub fn has_folder(&self, snapshotter: &str, number: u64) -> bool {
        match self.place(snapshotter) {
            Ok(Place::Here(engine)) => engine.folders.layer(number).is_dir(),
            Ok(Place::Elsewhere(_)) | Err(_) => true,
        }
    }

    /// Removes what lies on disk for a snapshot whose row was removed.
    ///
    /// # Errors
    /// Something in its folder cannot be removed.
    pub fn discard(&self, namespace: &Namespace, snapshotter: &str, row: &Row) -> Result<()> {
        match self.place(snapshotter) {
            Ok(Place::Here(engine)) => engine.folders.remove(row.number),
            // The collector goes on: that program may be gone for good.
            Ok(Place::Elsewhere(remote)) => {
                if let Err(left) = self.discard_elsewhere(remote, namespace, row) {
                    tracing::warn!(%namespace, "removing a snapshot that nothing needs: {left}");
                }
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Removes what nothing needs in one snapshotter, if it can say.
    ///
    /// # Errors
    /// `InvalidArgument`; `Unimplemented`, for one in another program.
    pub fn cleanup(&self, namespace: &Namespace, snapshotter: &str) -> Result<()> {
        match self.place(snapshotter)? {
            Place::Here(_) => self.sweep(),
            Place::Elsewhere(remote) => remote.cleanup(namespace),
        }
    }

    /// Removes folders that no row names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn sweep(&self) -> Result<()> {
        for engine in self.engines.iter() {
            engine.folders.sweep(|| {
                let mut kept = std::collections::HashSet::new();
                for namespace in self.store.namespaces()? {
                    let below = name(engine.name, "");
                    let rows = self.store.list_below::<Row>(kind::SNAPSHOT, namespace.as_str(), &below)?;
                    kept.extend(rows.into_iter().map(|(_, row)| row.number));
                }
                Ok(kept)
            })?;
        }
        Ok(())
    }
}

fn not_committed(parent: &str) -> Error {
    Error::InvalidArgument(format!("parent {parent:?} is not committed snapshot"))
}

fn check_active(row: &Row, key: &str) -> Result<()> {
    match row.info.as_ref().map(Info::kind) {
        Some(Kind::Active) => Ok(()),
        _ => Err(Error::FailedPrecondition(format!("snapshot {key:?} is not active"))),
    }
}

fn check_parent(rows: &Rows<'_>, namespace: &Namespace, snapshotter: &str, parent: &str) -> Result<()> {
    if parent.is_empty() {
        return Ok(());
    }
    let row: Option<Row> = rows.get(kind::SNAPSHOT, namespace, &name(snapshotter, parent))?;
    match row.map(|row| row.info.unwrap_or_default().kind()) {
        None => Err(Error::NotFound(format!("parent snapshot {parent} does not exist"))),
        Some(Kind::Committed) => Ok(()),
        Some(_) => Err(not_committed(parent)),
    }
}
