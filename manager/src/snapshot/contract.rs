//! What every snapshotter promises, tried with the real kernel in a mount namespace of the test's own.

#![allow(unsafe_code)] // unshare(2), to mount where nobody else sees it

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;

/// A thread that mounts where nobody sees it; what it mounted goes with it.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let alone = || {
        // SAFETY: NEWNS leaves the table of open files alone, so no handle changes its meaning.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
        )
        .unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap())
}

struct Stage {
    dir: tempfile::TempDir,
    snapshots: Snapshots,
    snapshotter: &'static str,
    ns: Namespace,
}

impl Stage {
    fn new(snapshotter: &'static str) -> Stage {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap(); // not on a tmpfs, which is no upper folder everywhere
        let store = Store::open(&dir.path().join("db")).unwrap();
        let snapshots = Snapshots::open(dir.path(), store).unwrap();
        Stage { dir, snapshots, snapshotter, ns: Namespace::parse("test").unwrap() }
    }

    fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        self.snapshots.prepare(&self.ns, self.snapshotter, key, parent, &Labels::new(), false)
    }

    fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        self.snapshots.prepare(&self.ns, self.snapshotter, key, parent, &Labels::new(), true)
    }

    fn commit(&self, name: &str, key: &str) -> Result<()> {
        self.snapshots.commit(&self.ns, self.snapshotter, name, key, &Labels::new(), None)
    }

    /// Mounts as a shim does, and shows the place to `look`.
    fn mounted<T: Send>(&self, mounts: &[Mount], look: impl FnOnce(&Path) -> T + Send) -> T {
        let [mount] = mounts else { panic!("{mounts:?}") };
        let target = self.dir.path().join("target");
        fs::create_dir_all(&target).unwrap();
        alone(|| {
            use rustix::mount::MountFlags;
            match mount.r#type.as_str() {
                "bind" => {
                    rustix::mount::mount_bind(&mount.source, &target).unwrap();
                    if mount.options.iter().any(|option| option == "ro") {
                        rustix::mount::mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
                    }
                }
                kind => {
                    let data = std::ffi::CString::new(mount.options.join(",")).unwrap();
                    rustix::mount::mount(&mount.source, &target, kind, MountFlags::empty(), Some(data.as_c_str()))
                        .unwrap();
                }
            }
            look(&target)
        })
    }

    fn folders(&self) -> usize {
        fs::read_dir(self.dir.path().join("snapshots").join(self.snapshotter)).unwrap().count()
    }
}

fn each(promise: impl Fn(&Stage)) {
    for snapshotter in [OVERLAY, NATIVE] {
        promise(&Stage::new(snapshotter));
    }
}

#[test]
fn a_layer_adds_changes_and_removes_and_its_parent_stays_as_it_was() {
    each(|stage| {
        let base = stage.prepare("a", "").unwrap();
        stage.mounted(&base, |root| {
            fs::create_dir_all(root.join("dir/sub")).unwrap();
            for (name, text) in [("kept", "1"), ("changed", "1"), ("removed", "1"), ("dir/sub/file", "1")] {
                fs::write(root.join(name), text).unwrap();
            }
            fs::hard_link(root.join("kept"), root.join("dir/again")).unwrap();
            std::os::unix::fs::symlink("/kept", root.join("link")).unwrap();
            std::os::unix::fs::chown(root.join("kept"), Some(11), Some(12)).unwrap();
            fs::set_permissions(root.join("kept"), fs::Permissions::from_mode(0o4750)).unwrap();
            rustix::fs::setxattr(root.join("kept"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
            fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
        });
        stage.commit("base", "a").unwrap();
        let top = stage.prepare("b", "base").unwrap();
        stage.mounted(&top, |root| {
            fs::write(root.join("changed"), "2").unwrap();
            fs::write(root.join("added"), "2").unwrap();
            fs::remove_file(root.join("removed")).unwrap();
            fs::remove_dir_all(root.join("dir/sub")).unwrap();
        });
        stage.commit("top", "b").unwrap();
        let seen = |mounts: Vec<Mount>| {
            stage.mounted(&mounts, |root| {
                let kept = fs::metadata(root.join("kept")).unwrap();
                assert_eq!((kept.uid(), kept.gid(), kept.mode() & 0o7777, kept.nlink()), (11, 12, 0o4750, 2));
                let mut value = [0_u8; 8];
                assert_eq!(rustix::fs::getxattr(root.join("kept"), "user.note", &mut value[..]), Ok(1));
                assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o751);
                assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/kept"));
                let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
                ["changed", "added", "removed", "dir/sub/file"].map(read)
            })
        };
        assert_eq!(seen(stage.view("v", "top").unwrap()), ["2", "2", "", ""], "{}", stage.snapshotter);
        assert_eq!(seen(stage.view("w", "base").unwrap()), ["1", "", "1", "1"], "{}", stage.snapshotter);
        assert_eq!(seen(stage.prepare("x", "top").unwrap()), ["2", "2", "", ""], "{}", stage.snapshotter);
    });
}

#[test]
fn a_view_cannot_be_written_or_committed() {
    each(|stage| {
        stage.prepare("a", "").unwrap();
        stage.commit("base", "a").unwrap();
        stage.prepare("b", "base").unwrap();
        stage.commit("top", "b").unwrap();
        for parent in ["base", "top", ""] {
            let key = format!("view of {parent}");
            let mounts = stage.view(&key, parent).unwrap();
            let error = stage.mounted(&mounts, |root| fs::write(root.join("x"), "").unwrap_err());
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{} on {parent:?}", stage.snapshotter);
            assert!(matches!(stage.commit("c", &key), Err(Error::FailedPrecondition(_))));
        }
    });
}

#[test]
fn a_snapshot_lives_from_active_to_committed_and_holds_its_parent() {
    each(|stage| {
        let snapshots = &stage.snapshots;
        assert!(matches!(stage.prepare("", ""), Err(Error::InvalidArgument(_))));
        assert!(matches!(stage.prepare("a", "missing"), Err(Error::NotFound(_))));
        stage.prepare("a", "").unwrap();
        assert!(matches!(stage.prepare("a", ""), Err(Error::AlreadyExists(_))));
        assert!(matches!(stage.prepare("b", "a"), Err(Error::InvalidArgument(_))), "an active parent");
        stage.commit("A", "a").unwrap();
        assert!(matches!(stage.commit("B", "a"), Err(Error::NotFound(_))), "the key is free");
        assert!(matches!(snapshots.mounts(&stage.ns, stage.snapshotter, "A"), Err(Error::FailedPrecondition(_))));
        stage.prepare("a", "A").unwrap();
        assert!(matches!(stage.commit("A", "a"), Err(Error::AlreadyExists(_))), "the name is used");
        assert_eq!(snapshots.mounts(&stage.ns, stage.snapshotter, "a").unwrap().len(), 1);
        let remove = |key: &str| snapshots.remove(&stage.ns, stage.snapshotter, key);
        assert!(remove("A").unwrap_err().to_string().contains("with child"));
        remove("a").unwrap();
        remove("A").unwrap();
        assert!(matches!(remove("A"), Err(Error::NotFound(_))));
        assert_eq!(stage.folders(), 0, "{}", stage.snapshotter);
    });
}

#[test]
fn a_key_is_no_path_and_snapshotters_do_not_see_each_others() {
    each(|stage| {
        for key in ["../../x", "/etc", "a b", "extract-1-abc sha256:0"] {
            stage.prepare(key, "").unwrap();
        }
        let other = if stage.snapshotter == OVERLAY { NATIVE } else { OVERLAY };
        assert!(stage.snapshots.list(&stage.ns, other).unwrap().is_empty());
        assert_eq!(stage.snapshots.list(&stage.ns, stage.snapshotter).unwrap().len(), 4);
        assert_eq!(stage.folders(), 4);
        assert!(matches!(stage.snapshots.list(&stage.ns, "zfs"), Err(Error::InvalidArgument(_))));
    });
}

#[test]
fn what_a_crash_left_without_a_row_is_gone_at_the_next_start() {
    each(|stage| {
        stage.prepare("a", "").unwrap();
        let root = stage.dir.path().join("snapshots").join(stage.snapshotter);
        fs::create_dir_all(root.join("77/fs/half/made")).unwrap();
        fs::create_dir_all(root.join("strange")).unwrap();
        Snapshots::open(stage.dir.path(), stage.snapshots.store.clone()).unwrap();
        assert_eq!(stage.folders(), 1, "{}", stage.snapshotter);
        assert!(stage.snapshots.mounts(&stage.ns, stage.snapshotter, "a").is_ok());
    });
}

#[test]
fn a_refused_prepare_leaves_no_folder_and_many_at_once_get_one_key() {
    each(|stage| {
        let made: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| usize::from(stage.prepare("a", "").is_ok()))).collect();
            tries.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!((made, stage.folders()), (1, 1), "{}", stage.snapshotter);
    });
}

#[test]
fn only_a_layer_of_differences_can_be_put_on_another_parent() {
    each(|stage| {
        stage.prepare("a", "").unwrap();
        stage.commit("base", "a").unwrap();
        stage.prepare("b", "").unwrap();
        let put = stage.snapshots.commit(&stage.ns, stage.snapshotter, "top", "b", &Labels::new(), Some("base"));
        match stage.snapshotter {
            OVERLAY => {
                put.unwrap();
                assert_eq!(stage.snapshots.info(&stage.ns, OVERLAY, "top").unwrap().parent, "base");
            }
            _ => assert!(matches!(put, Err(Error::Unimplemented(_)))),
        }
    });
}

#[test]
fn usage_counts_a_file_with_two_names_once() {
    each(|stage| {
        let mounts = stage.prepare("a", "").unwrap();
        stage.mounted(&mounts, |root| {
            fs::write(root.join("one"), vec![1; 100_000]).unwrap();
            fs::hard_link(root.join("one"), root.join("two")).unwrap();
        });
        let (size, inodes) = stage.snapshots.usage(&stage.ns, stage.snapshotter, "a").unwrap();
        assert_eq!(inodes, 2);
        assert!((100_000..130_000).contains(&size), "{size}");
        stage.commit("A", "a").unwrap();
        assert_eq!(stage.snapshots.usage(&stage.ns, stage.snapshotter, "A").unwrap(), (size, inodes));
    });
}
