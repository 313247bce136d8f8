//! What stays and what goes.

use tare_proto::containerd::types::Descriptor;

use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::services::images::v1::Image;

use super::*;
use crate::names::Labels;
use crate::snapshot::{NATIVE, OVERLAY};

#[test]
fn what_an_image_or_a_lease_reaches_stays_and_the_rest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let content_store = Content::open(dir.path(), store.clone()).unwrap();
    let snapshots = Snapshots::open(dir.path(), store.clone()).unwrap();
    let ns = Namespace::parse("test").unwrap();
    let blob = |text: &str, labels: Labels| {
        let mut writer = content_store.writer(&ns, text, 0, None).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.commit(0, None, &labels).unwrap()
    };
    let layer = blob("layer", Labels::new());
    let config = blob("config", Labels::from([("containerd.io/gc.ref.snapshot.overlayfs".into(), "top".into())]));
    let manifest = blob(
        "manifest",
        Labels::from([
            ("containerd.io/gc.ref.content.l.0".into(), layer.to_string()),
            ("containerd.io/gc.ref.content.config".into(), config.to_string()),
        ]),
    );
    let leased = blob("leased", Labels::new());
    let lost = blob("lost", Labels::new());
    let none = Labels::new();
    for (key, parent, name) in [("a", "", "base"), ("b", "base", "top"), ("c", "", "lost")] {
        snapshots.prepare(&ns, OVERLAY, key, parent, &none, false).unwrap();
        snapshots.commit(&ns, OVERLAY, name, key, &none, None).unwrap();
    }
    let image = Image {
        name: "i".into(),
        target: Some(Descriptor { digest: manifest.to_string(), ..Default::default() }),
        ..Default::default()
    };
    store.change(|rows| rows.put(kind::IMAGE, &ns, "i", &image)).unwrap();
    store.change(|rows| rows.put(kind::LEASE, &ns, "l", &Lease { id: "l".into(), ..Default::default() })).unwrap();
    hold(&store, &ns, "l", &[content(&leased)]).unwrap();

    collect(&store, &content_store, &snapshots).unwrap();
    for kept in [&layer, &config, &manifest, &leased] {
        assert!(content_store.info(&ns, kept).is_ok(), "{kept}");
    }
    assert!(content_store.info(&ns, &lost).is_err());
    assert!(snapshots.info(&ns, OVERLAY, "base").is_ok() && snapshots.info(&ns, OVERLAY, "lost").is_err());

    store.change(|rows| rows.remove(kind::IMAGE, "test", "i")).unwrap();
    release(&store, &ns, "l").unwrap();
    collect(&store, &content_store, &snapshots).unwrap();
    assert!(content_store.list(&ns).unwrap().is_empty() && snapshots.list(&ns, OVERLAY).unwrap().is_empty());
}

struct Stage {
    _dir: tempfile::TempDir,
    store: Store,
    content: Content,
    snapshots: Snapshots,
    ns: Namespace,
}

impl Stage {
    fn new() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let content = Content::open(dir.path(), store.clone()).unwrap();
        let snapshots = Snapshots::open(dir.path(), store.clone()).unwrap();
        Stage { _dir: dir, store, content, snapshots, ns: Namespace::parse("test").unwrap() }
    }

    fn blob(&self, text: &str, labels: &[(&str, &str)]) -> Digest {
        let mut writer = self.content.writer(&self.ns, text, 0, None).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.commit(0, None, &owned(labels)).unwrap()
    }

    fn snapshot(&self, snapshotter: &str, name: &str, parent: &str) {
        self.snapshots.prepare(&self.ns, snapshotter, "key", parent, &Labels::new(), false).unwrap();
        self.snapshots.commit(&self.ns, snapshotter, name, "key", &Labels::new(), None).unwrap();
    }

    fn image(&self, name: &str, target: &Digest, labels: &[(&str, &str)]) {
        let target = Some(Descriptor { digest: target.to_string(), ..Default::default() });
        let image = Image { name: name.into(), target, labels: owned(labels), ..Default::default() };
        self.store.change(|rows| rows.put(kind::IMAGE, &self.ns, name, &image)).unwrap();
    }

    fn lease(&self, id: &str, labels: &[(&str, &str)], holds: &[(&str, String)]) {
        let lease = Lease { id: id.into(), labels: owned(labels), ..Default::default() };
        self.store.change(|rows| rows.put(kind::LEASE, &self.ns, id, &lease)).unwrap();
        hold(&self.store, &self.ns, id, holds).unwrap();
    }

    fn collect(&self) {
        collect(&self.store, &self.content, &self.snapshots).unwrap();
    }

    fn has(&self, digest: &Digest) -> bool {
        self.content.info(&self.ns, digest).is_ok()
    }

    fn snapshots_of(&self, snapshotter: &str) -> Vec<String> {
        self.snapshots.list(&self.ns, snapshotter).unwrap().into_iter().map(|info| info.name).collect()
    }
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const PAST: (&str, &str) = ("containerd.io/gc.expire", "2020-01-01T00:00:00+02:00");
const FUTURE: (&str, &str) = ("containerd.io/gc.expire", "2999-01-01T00:00:00Z");

#[test]
fn what_has_expired_ends_and_holds_nothing() {
    let stage = Stage::new();
    let (old, new, gone, stays) =
        (stage.blob("1", &[]), stage.blob("2", &[]), stage.blob("3", &[]), stage.blob("4", &[]));
    stage.lease("old", &[PAST], &[content(&old)]);
    stage.lease("new", &[FUTURE], &[content(&new)]);
    stage.image("gone", &gone, &[PAST]);
    stage.image("stays", &stays, &[FUTURE]);
    stage.collect();
    assert_eq!([&old, &new, &gone, &stays].map(|digest| stage.has(digest)), [false, true, false, true]);
    let names =
        |kind| stage.store.list::<()>(kind, &stage.ns).unwrap().into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(names(kind::LEASE), ["new"]);
    assert_eq!(names(kind::RESOURCE).len(), 1);
    assert_eq!(names(kind::IMAGE), ["stays"]);
}

#[test]
fn a_flat_lease_holds_what_it_lists_and_the_parents_of_snapshots() {
    let stage = Stage::new();
    let below = stage.blob("below", &[]);
    let top = stage.blob("top", &[("containerd.io/gc.ref.content.l.0", below.as_str())]);
    stage.snapshot(OVERLAY, "base", "");
    stage.snapshot(OVERLAY, "top", "base");
    let holds = [content(&top), ("snapshots/overlayfs", "top".to_owned())];
    stage.lease("l", &[("containerd.io/gc.flat", "1")], &holds);
    stage.collect();
    assert_eq!((stage.has(&top), stage.has(&below)), (true, false));
    assert_eq!(stage.snapshots_of(OVERLAY), ["base", "top"]);
}

#[test]
fn a_snapshot_is_known_by_its_snapshotter_and_its_key() {
    let stage = Stage::new();
    let config = stage.blob("config", &[("containerd.io/gc.ref.snapshot.native/more", "same")]);
    stage.image("i", &config, &[]);
    for snapshotter in [OVERLAY, NATIVE] {
        stage.snapshot(snapshotter, "same", "");
    }
    stage.collect();
    assert_eq!(stage.snapshots_of(NATIVE), ["same"]);
    assert_eq!(stage.snapshots_of(OVERLAY), Vec::<String>::new());
}

#[test]
fn a_back_reference_lives_as_long_as_what_it_names() {
    let stage = Stage::new();
    let config = stage.blob("config", &[]);
    let with_image = stage.blob("a", &[("containerd.io/gc.bref.image", "i")]);
    let with_content = stage.blob("b", &[("containerd.io/gc.bref.content.x", config.as_str())]);
    let with_container = stage.blob("c", &[("containerd.io/gc.bref.container", "gone")]);
    let marked = stage.blob("d", &[("containerd.io/gc.root", "yes")]);
    stage.image("i", &config, &[]);
    stage.collect();
    let all = [&with_image, &with_content, &with_container, &marked];
    assert_eq!(all.map(|digest| stage.has(digest)), [true, true, false, true]);
    stage.store.change(|rows| rows.remove(kind::IMAGE, "test", "i")).unwrap();
    stage.collect();
    assert_eq!(all.map(|digest| stage.has(digest)), [false, false, false, true]);
}

#[test]
fn a_container_keeps_its_snapshot_and_a_cycle_of_labels_keeps_nothing() {
    let stage = Stage::new();
    stage.snapshot(OVERLAY, "image", "");
    stage.snapshots.prepare(&stage.ns, OVERLAY, "rootfs", "image", &Labels::new(), false).unwrap();
    stage.snapshots.prepare(&stage.ns, OVERLAY, "loose", "", &Labels::new(), false).unwrap();
    let container =
        Container { id: "c".into(), snapshotter: OVERLAY.into(), snapshot_key: "rootfs".into(), ..Default::default() };
    stage.store.change(|rows| rows.put(kind::CONTAINER, &stage.ns, "c", &container)).unwrap();
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    stage.blob("a", &[("containerd.io/gc.ref.content.x", b.as_str())]);
    stage.blob("b", &[("containerd.io/gc.ref.content.x", a.as_str())]);
    stage.collect();
    assert_eq!(stage.snapshots_of(OVERLAY), ["image", "rootfs"]);
    assert!(!stage.has(&a) && !stage.has(&b));
}

/// Somebody commits while the collector runs, again and again: what has a row is always there.
#[test]
fn no_blob_loses_its_file_to_a_collection_that_runs_beside_its_commit() {
    let stage = Stage::new();
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| (0..60).for_each(|_| stage.collect()));
        while !collecting.is_finished() {
            let mut writer = stage.content.writer(&stage.ns, "r", 0, None).unwrap();
            writer.write(b"again").unwrap();
            hold(&stage.store, &stage.ns, "l", &[content(&Digest::of(b"again"))]).unwrap();
            match writer.commit(0, None, &Labels::new()) {
                Ok(_) | Err(crate::error::Error::AlreadyExists(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if let Ok(info) = stage.content.info(&stage.ns, &Digest::of(b"again")) {
                let there = stage.content.read(&stage.ns, &Digest::of(b"again"), 10);
                // It may have been collected since; then its row went first.
                assert!(there.is_ok() || stage.content.info(&stage.ns, &Digest::of(b"again")).is_err(), "{info:?}");
            }
        }
    });
}

/// Between marking and removing, clients go on: what they name by then stays, with all that it reaches.
#[test]
fn what_is_named_after_it_was_marked_stays_with_all_that_it_reaches() {
    let stage = Stage::new();
    let layer = stage.blob("layer", &[]);
    let manifest = stage.blob("manifest", &[("containerd.io/gc.ref.content.l.0", layer.as_str())]);
    let loose = stage.blob("loose", &[]);
    stage.snapshot(OVERLAY, "base", "");
    stage.snapshot(OVERLAY, "top", "base");
    let journal = stage.store.watch().unwrap();
    let marked = Graph::read(&stage.store.view().unwrap(), &stage.ns).unwrap().mark(Vec::new());
    stage.image("late", &manifest, &[]);
    stage.snapshots.prepare(&stage.ns, OVERLAY, "rw", "top", &Labels::new(), false).unwrap();
    let removed = remove(&stage.store, &stage.ns, marked, &journal).unwrap();
    assert_eq!(removed, [(Node::Content(loose.to_string()), Row::default())]);
    assert_eq!(stage.snapshots_of(OVERLAY), ["base", "rw", "top"]);
}

#[test]
fn what_refers_goes_before_what_it_refers_to() {
    let stage = Stage::new();
    let layer = stage.blob("layer", &[]);
    let config = stage.blob("config", &[("containerd.io/gc.ref.snapshot.overlayfs", "top")]);
    let labels = [
        ("containerd.io/gc.ref.content.l.0", layer.as_str()),
        ("containerd.io/gc.ref.content.config", config.as_str()),
    ];
    let manifest = stage.blob("manifest", &labels);
    stage.snapshot(OVERLAY, "base", "");
    stage.snapshot(OVERLAY, "top", "base");
    stage.image("old", &manifest, &[PAST]);
    let mut marked = Graph::read(&stage.store.view().unwrap(), &stage.ns).unwrap().mark(Vec::new());
    let order: Vec<_> = std::iter::from_fn(|| marked.next(1).pop()).collect();
    let place = |node: Node| order.iter().position(|other| *other == node).unwrap();
    let content = |digest: &Digest| Node::Content(digest.to_string());
    let chain = [Node::Image("old".into()), content(&manifest), content(&config), Node::snapshot(OVERLAY, "top")];
    assert!(chain.map(place).is_sorted() && place(content(&layer)) > place(content(&manifest)), "{order:?}");
    assert!(place(Node::snapshot(OVERLAY, "base")) > place(Node::snapshot(OVERLAY, "top")));
    assert_eq!(order.len(), 6);
}

#[test]
fn who_watches_is_told_of_images_and_snapshots_that_went_and_sandboxes_keep_what_they_name() {
    let stage = Stage::new();
    let (gone, kept) = (stage.blob("gone", &[]), stage.blob("kept", &[]));
    stage.image("old", &gone, &[PAST]);
    stage.snapshot(OVERLAY, "loose", "");
    let labels = owned(&[("containerd.io/gc.ref.content", kept.as_str())]);
    let sandbox = tare_proto::containerd::types::Sandbox { labels, ..Default::default() };
    stage.store.change(|rows| rows.put(kind::SANDBOX, &stage.ns, "pod", &sandbox)).unwrap();
    let told = collect(&stage.store, &stage.content, &stage.snapshots).unwrap();
    let ns = stage.ns.clone();
    let snapshots = vec![(ns.clone(), OVERLAY.to_owned(), "loose".to_owned())];
    assert_eq!(told, Gone { images: vec![(ns, "old".into())], snapshots, blobs: 1 });
    assert_eq!((stage.has(&gone), stage.has(&kept)), (false, true));
}
