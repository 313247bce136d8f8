//! Snapshots on overlayfs: a folder for each layer, put together by the kernel when a container mounts them.
//!
//! ```text
//! snapshots/overlayfs/N/fs      the layer's own files
//! snapshots/overlayfs/N/work    overlayfs's own
//! ```
//!
//! The folder is made first and its row last; a folder without a row is removed. A key is free text and never a path.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tare_proto::containerd::services::snapshots::v1::{Info, Kind};
use tare_proto::containerd::types::Mount;

use crate::error::{Doing as _, Error, Result};
use crate::names::{Labels, Namespace, check_labels};
use crate::store::{Rows, Store, kind};

/// The name that clients know it by.
pub const OVERLAY: &str = "overlayfs";

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
}

#[derive(Clone)]
pub struct Snapshots {
    root: PathBuf,
    store: Store,
    next: Arc<AtomicU64>,
}

fn name(key: &str) -> String {
    format!("{OVERLAY}\0{key}")
}

/// # Errors
/// `NotFound`: there is no such snapshotter.
pub fn check_snapshotter(snapshotter: &str) -> Result<()> {
    if snapshotter == OVERLAY { Ok(()) } else { Err(Error::NotFound(format!("snapshotter not loaded: {snapshotter}"))) }
}

impl Snapshots {
    /// Opens the snapshots below `root`, and removes folders that no row names.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path, store: Store) -> Result<Snapshots> {
        let root = root.join("snapshots").join(OVERLAY);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .doing(|| format!("making {}", root.display()))?;
        let snapshots = Snapshots { root, store, next: Arc::new(AtomicU64::new(1)) };
        snapshots.sweep()?;
        let last = fs::read_dir(&snapshots.root).doing(|| "reading snapshots".into())?;
        let last =
            last.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max().unwrap_or(0);
        snapshots.next.store(last + 1, Ordering::SeqCst);
        Ok(snapshots)
    }

    /// # Errors
    /// `NotFound`.
    pub fn row(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Row> {
        check_snapshotter(snapshotter)?;
        self.store.get(kind::SNAPSHOT, namespace, &name(key))?.ok_or_else(|| Error::NotFound(format!("snapshot {key}")))
    }

    /// # Errors
    /// `NotFound`.
    pub fn info(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Info> {
        Ok(self.row(namespace, snapshotter, key)?.info.unwrap_or_default())
    }

    /// # Errors
    /// The database is damaged.
    pub fn list(&self, namespace: &Namespace, snapshotter: &str) -> Result<Vec<Info>> {
        check_snapshotter(snapshotter)?;
        Ok(self.store.list::<Row>(kind::SNAPSHOT, namespace)?.into_iter().filter_map(|(_, row)| row.info).collect())
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
        check_snapshotter(snapshotter)?;
        check_labels(labels)?;
        if key.is_empty() {
            return Err(Error::InvalidArgument("snapshot key must not be empty".into()));
        }
        self.check_parent(namespace, parent)?;
        if self.row(namespace, snapshotter, key).is_ok() {
            return Err(Error::AlreadyExists(format!("snapshot {key}")));
        }
        let number = self.make_folder(namespace, parent)?;
        let now = Some(SystemTime::now().into());
        let info = Info {
            name: key.into(),
            parent: parent.into(),
            kind: if view { Kind::View } else { Kind::Active }.into(),
            created_at: now,
            updated_at: now,
            labels: labels.clone(),
        };
        let row = Row { info: Some(info), number, size: 0, inodes: 0 };
        self.store.change(|rows| {
            if rows.get::<Row>(kind::SNAPSHOT, namespace, &name(key))?.is_some() {
                return Err(Error::AlreadyExists(format!("snapshot {key}")));
            }
            rows.put(kind::SNAPSHOT, namespace, &name(key), &row)
        })?;
        self.mounts(namespace, snapshotter, key)
    }

    fn check_parent(&self, namespace: &Namespace, parent: &str) -> Result<()> {
        if parent.is_empty() {
            return Ok(());
        }
        let info =
            self.info(namespace, OVERLAY, parent).map_err(|_| Error::NotFound(format!("parent snapshot {parent}")))?;
        if info.kind() == Kind::Committed {
            Ok(())
        } else {
            Err(Error::InvalidArgument(format!("parent {parent} is not committed")))
        }
    }

    /// A layer's folders; the top one looks like the parent's, since it is what a container sees as `/`.
    fn make_folder(&self, namespace: &Namespace, parent: &str) -> Result<u64> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let folder = self.folder(number);
        let doing = || format!("making {}", folder.display());
        fs::DirBuilder::new().mode(0o700).create(&folder).doing(doing)?;
        fs::DirBuilder::new().mode(0o711).create(folder.join("work")).doing(doing)?;
        let fs_folder = folder.join("fs");
        fs::DirBuilder::new().create(&fs_folder).doing(doing)?;
        let mut mode = 0o755;
        if !parent.is_empty() {
            let above = fs::metadata(self.layer(self.row(namespace, OVERLAY, parent)?.number)).doing(doing)?;
            mode = above.mode() & 0o7777;
            std::os::unix::fs::chown(&fs_folder, Some(above.uid()), Some(above.gid())).doing(doing)?;
        }
        fs::set_permissions(&fs_folder, fs::Permissions::from_mode(mode)).doing(doing)?;
        Ok(number)
    }

    fn folder(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// Where a layer's own files lie.
    pub fn layer(&self, number: u64) -> PathBuf {
        self.folder(number).join("fs")
    }

    /// What to mount for an active snapshot or a view.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` it is committed.
    pub fn mounts(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let row = self.row(namespace, snapshotter, key)?;
        let info = row.info.unwrap_or_default();
        if info.kind() == Kind::Committed {
            return Err(Error::FailedPrecondition(format!("snapshot {key} is committed")));
        }
        let view = info.kind() == Kind::View;
        let lower = self.chain(namespace, &info.parent)?;
        let bind = |path: &Path, mode: &str| Mount {
            r#type: "bind".into(),
            source: path.to_string_lossy().into_owned(),
            target: String::new(),
            options: vec![mode.into(), "rbind".into()],
        };
        let own = self.layer(row.number);
        Ok(vec![match (lower.as_slice(), view) {
            ([], view) => bind(&own, if view { "ro" } else { "rw" }),
            ([only], true) => bind(only, "ro"),
            (lower, view) => {
                let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy().into_owned()).collect();
                let mut options = Vec::new();
                if !view {
                    options.push(format!("workdir={}", self.folder(row.number).join("work").display()));
                    options.push(format!("upperdir={}", own.display()));
                }
                options.push(format!("lowerdir={}", lower.join(":")));
                options.push("index=off".into());
                Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
            }
        }])
    }

    /// The folders of a committed snapshot and all below it, top first.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn chain(&self, namespace: &Namespace, key: &str) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        let mut key = key.to_owned();
        while !key.is_empty() {
            let row = self.row(namespace, OVERLAY, &key)?;
            folders.push(self.layer(row.number));
            key = row.info.unwrap_or_default().parent;
        }
        Ok(folders)
    }

    /// Freezes an active snapshot under a name of its own; the key is free again. A `parent` that is given becomes its
    /// parent: so layers can be unpacked side by side and put on one another at the end.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists` the name is used; `FailedPrecondition` it is not active.
    pub fn commit(
        &self,
        namespace: &Namespace,
        snapshotter: &str,
        new: &str,
        key: &str,
        labels: &Labels,
        parent: Option<&str>,
    ) -> Result<()> {
        check_labels(labels)?;
        let before = self.row(namespace, snapshotter, key)?;
        if let Some(parent) = parent {
            self.check_parent(namespace, parent)?;
        }
        let (size, inodes) = usage(&self.layer(before.number))?;
        sync(&self.layer(before.number))?;
        self.store.change(|rows| {
            if rows.get::<Row>(kind::SNAPSHOT, namespace, &name(new))?.is_some() {
                return Err(Error::AlreadyExists(format!("snapshot {new}")));
            }
            let mut row: Row = rows
                .get(kind::SNAPSHOT, namespace, &name(key))?
                .ok_or_else(|| Error::NotFound(format!("snapshot {key}")))?;
            let info = row.info.get_or_insert_default();
            if info.kind() != Kind::Active {
                return Err(Error::FailedPrecondition(format!("snapshot {key} is not active")));
            }
            info.name = new.into();
            if let Some(parent) = parent {
                info.parent = parent.into();
            }
            info.set_kind(Kind::Committed);
            info.updated_at = Some(SystemTime::now().into());
            info.labels.extend(labels.clone());
            (row.size, row.inodes) = (size, inodes);
            rows.remove(kind::SNAPSHOT, namespace.as_str(), &name(key))?;
            rows.put(kind::SNAPSHOT, namespace, &name(new), &row)
        })
    }

    /// Removes a snapshot that nothing lies on.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` it has children.
    pub fn remove(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<()> {
        check_snapshotter(snapshotter)?;
        let row = self.row(namespace, snapshotter, key)?;
        self.store.change(|rows| {
            if has_children(rows, namespace, key)? {
                return Err(Error::FailedPrecondition(format!("cannot remove snapshot {key} with child")));
            }
            rows.remove(kind::SNAPSHOT, namespace.as_str(), &name(key))
        })?;
        remove_folder(&self.folder(row.number))
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
        check_snapshotter(snapshotter)?;
        self.store.change(|rows| {
            let mut row: Row = rows
                .get(kind::SNAPSHOT, namespace, &name(key))?
                .ok_or_else(|| Error::NotFound(format!("snapshot {key}")))?;
            let info = row.info.get_or_insert_default();
            change(&mut info.labels)?;
            info.updated_at = Some(SystemTime::now().into());
            let info = info.clone();
            rows.put(kind::SNAPSHOT, namespace, &name(key), &row)?;
            Ok(info)
        })
    }

    /// Bytes and inodes of the layer alone.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn usage(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<(i64, i64)> {
        let row = self.row(namespace, snapshotter, key)?;
        match row.info.as_ref().map(Info::kind) {
            Some(Kind::Committed) => Ok((row.size, row.inodes)),
            _ => usage(&self.layer(row.number)),
        }
    }

    /// Removes folders that no row names.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn sweep(&self) -> Result<()> {
        let mut kept = HashSet::new();
        for namespace in self.store.namespaces()? {
            kept.extend(self.store.list::<Row>(kind::SNAPSHOT, &namespace)?.into_iter().map(|(_, row)| row.number));
        }
        for entry in fs::read_dir(&self.root).doing(|| format!("reading {}", self.root.display()))?.flatten() {
            let number = entry.file_name().to_str().and_then(|text| text.parse::<u64>().ok());
            // A number that is still to be given, or was just given, belongs to a prepare under way.
            let new = number.is_some_and(|number| {
                number + 64 >= self.next.load(Ordering::SeqCst) && self.next.load(Ordering::SeqCst) > 1
            });
            if !new && number.is_none_or(|number| !kept.contains(&number)) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn has_children(rows: &Rows<'_>, namespace: &Namespace, key: &str) -> Result<bool> {
    for other in rows.names(kind::SNAPSHOT, namespace.as_str(), &name(""))? {
        let row: Option<Row> = rows.get(kind::SNAPSHOT, namespace, &other)?;
        if row.and_then(|row| row.info).is_some_and(|info| info.parent == key) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.doing(|| format!("removing {}", path.display())),
    }
}

/// Bytes on disk and inodes; a file with several names counts once.
fn usage(folder: &Path) -> Result<(i64, i64)> {
    let mut seen = HashSet::new();
    let (mut size, mut inodes) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let own = fs::symlink_metadata(&folder).doing(|| format!("looking at {}", folder.display()))?;
        (size, inodes) = (size + own.blocks() * 512, inodes + 1);
        for entry in fs::read_dir(&folder).doing(|| format!("reading {}", folder.display()))?.flatten() {
            let Ok(there) = entry.metadata() else { continue }; // removed while we look
            if there.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(there.ino()) {
                (size, inodes) = (size + there.blocks() * 512, inodes + 1);
            }
        }
    }
    Ok((i64::try_from(size).unwrap_or(i64::MAX), inodes))
}

/// All of a layer reaches the disk before its row says that it is whole.
fn sync(folder: &Path) -> Result<()> {
    let handle = fs::File::open(folder).doing(|| format!("opening {}", folder.display()))?;
    rustix::fs::syncfs(&handle).doing(|| format!("syncing {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_lives_from_active_to_committed_and_holds_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let snapshots = Snapshots::open(dir.path(), store).unwrap();
        let ns = Namespace::parse("test").unwrap();
        let none = Labels::new();
        let mounts = snapshots.prepare(&ns, OVERLAY, "a", "", &none, false).unwrap();
        assert_eq!((mounts[0].r#type.as_str(), mounts[0].options[0].as_str()), ("bind", "rw"));
        assert!(snapshots.prepare(&ns, OVERLAY, "b", "a", &none, false).is_err(), "an active parent");
        fs::write(Path::new(&mounts[0].source).join("file"), "x").unwrap();
        snapshots.commit(&ns, OVERLAY, "A", "a", &none, None).unwrap();
        assert!(snapshots.mounts(&ns, OVERLAY, "A").is_err(), "committed");
        let mounts = snapshots.prepare(&ns, OVERLAY, "b", "A", &none, false).unwrap();
        assert_eq!(mounts[0].r#type, "overlay");
        assert!(snapshots.remove(&ns, OVERLAY, "A").unwrap_err().to_string().contains("with child"));
        snapshots.remove(&ns, OVERLAY, "b").unwrap();
        snapshots.remove(&ns, OVERLAY, "A").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("snapshots").join(OVERLAY)).unwrap().count(), 0);
    }
}
