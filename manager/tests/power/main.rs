//! The power is cut at any moment of a pull, a commit, a removal and a collection, and the next start finds a store that is
//! whole.
//!
//! ```text
//! a process works ──tracer──▶ steps ──disk──▶ what a cut after the n-th step leaves ──▶ start, look at everything, pull again
//! ```
//!
//! A sample is tried; as many as `TARE_POWER_CUTS` in the environment says, and with a large number all.

#![allow(unsafe_code)] // ptrace(2) has no safe face
#![allow(clippy::zombie_processes)] // one that has ended is waited for by waitpid(2), as its tracer does

mod disk;
mod registry;
mod tracer;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{Found, Kind, Lost, Step};
use registry::Registry;
use tare_manager::content::Content;
use tare_manager::images::Images;
use tare_manager::names::{Labels, Namespace};
use tare_manager::registry::Options;
use tare_manager::snapshot::{OVERLAY, Snapshots};
use tare_manager::store::Store;
use tare_manager::transfer::{Names, Platform, Progress, Request, Transfers, Unpack};
use tare_manager::{fsck, gc};
use tare_proto::containerd::services::snapshots::v1::Kind as Life;

/// Set for the process that is recorded: where it works, and the registry's reference.
const PLACE: &str = "TARE_POWER_PLACE";
const REFERENCE: &str = "TARE_POWER_REFERENCE";
const IMAGE: &str = "image";
/// A snapshot that lies on the image's, and is committed.
const OWN: &str = "own";
/// How many cuts are a sample.
const SAMPLE: usize = 24;

struct Stores {
    store: Store,
    content: Content,
    snapshots: Snapshots,
    ns: Namespace,
}

/// What there is to see of a file of a layer.
type Tree = BTreeMap<PathBuf, (Found, Vec<u8>)>;

impl Stores {
    /// As the daemon starts.
    fn open(dir: &Path) -> Stores {
        let store = Store::open(&dir.join("tared.db")).unwrap();
        let content = Content::open(dir, store.clone()).unwrap();
        let snapshots = Snapshots::open(dir, store.clone()).unwrap();
        Transfers::new(store.clone(), content.clone(), snapshots.clone()).recover().unwrap();
        content.sweep_blobs().unwrap();
        let stores = Stores { store, content, snapshots, ns: Namespace::parse("power").unwrap() };
        stores.collect();
        stores
    }

    fn collect(&self) {
        gc::collect(&self.store, &self.content, &self.snapshots).unwrap();
    }

    fn pull(&self, reference: &str) {
        let request = Request {
            reference: reference.into(),
            names: Names { name: IMAGE.into(), ..Names::default() },
            platforms: vec![Platform::own()],
            unpacks: vec![Unpack { platform: Platform::own(), snapshotter: OVERLAY.into() }],
            registry: Options { scheme: Some("http".into()), ..Options::default() },
            ..Request::default()
        };
        let transfers = Transfers::new(self.store.clone(), self.content.clone(), self.snapshots.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(transfers.pull(&self.ns, &request, &Progress::default())).unwrap();
    }

    fn commit_own(&self, parent: &str) {
        let mounts = self.snapshots.prepare(&self.ns, OVERLAY, "key", parent, &Labels::new(), false).unwrap();
        let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
        fs::write(Path::new(upper).join("written"), "by a container\n".repeat(1000)).unwrap();
        let labels = Labels::from([("containerd.io/gc.root".into(), "now".into())]);
        self.snapshots.commit(&self.ns, OVERLAY, OWN, "key", &labels, None).unwrap();
    }

    fn has_image(&self) -> bool {
        !Images::new(self.store.clone()).list(&self.ns, &[]).unwrap().is_empty()
    }

    /// The top one of the image's snapshots.
    fn top(&self) -> String {
        let all = self.snapshots.list(&self.ns, OVERLAY).unwrap();
        let image = |name: &&str| !all.iter().any(|other| other.parent == *name && other.name != OWN);
        let mut tops = all.iter().map(|info| info.name.as_str()).filter(|name| *name != OWN && *name != "key");
        tops.find(image).unwrap().to_owned()
    }

    /// What lies in each committed snapshot.
    fn trees(&self) -> BTreeMap<String, Tree> {
        let committed = self.snapshots.list(&self.ns, OVERLAY).unwrap();
        let committed = committed.into_iter().filter(|info| info.kind() == Life::Committed);
        committed.map(|info| (self.tree(&info.name), info.name)).map(|(tree, name)| (name, tree)).collect()
    }

    fn tree(&self, name: &str) -> Tree {
        let layer = self.snapshots.layer(self.snapshots.row(&self.ns, OVERLAY, name).unwrap().number);
        let (mut tree, mut folders) = (Tree::new(), vec![layer.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let mut found = Found::at(&path).unwrap();
                found.inode = fs::symlink_metadata(&path).unwrap().nlink(); // numbers differ, how many names it has does not
                let bytes = if found.kind == Kind::File { fs::read(&path).unwrap() } else { Vec::new() };
                if found.kind == Kind::Folder {
                    found.inode = 0;
                    folders.push(path.clone());
                }
                tree.insert(path.strip_prefix(&layer).unwrap().to_owned(), (found, bytes));
            }
        }
        tree
    }
}

/// The process that is recorded. A client has been told what it prints.
fn work(place: &Path, reference: &str) {
    let told = |what: &str| println!("told: {what}");
    let stores = Stores::open(place);
    stores.pull(reference);
    told("pulled");
    stores.commit_own(&stores.top());
    told("committed");
    told("removing");
    stores.snapshots.remove(&stores.ns, OVERLAY, OWN).unwrap();
    Images::new(stores.store.clone()).delete(&stores.ns, IMAGE, None).unwrap();
    stores.collect();
    told("removed");
    stores.pull(reference);
    told("pulled again");
}

/// What a client was told before the cut is so, everything that can be seen is whole, and the next commands work.
fn assert_whole(dir: &Path, told: Option<&str>, expected: &BTreeMap<String, Tree>, reference: &str) {
    {
        let stores = Stores::open(dir);
        match told {
            Some("pulled" | "pulled again") => assert!(stores.has_image(), "the image is lost"),
            Some("committed") => {
                assert!(stores.has_image(), "the image is lost");
                stores.snapshots.info(&stores.ns, OVERLAY, OWN).unwrap();
            }
            _ => {}
        }
        let trees = stores.trees();
        for (name, tree) in &trees {
            assert_eq!(tree, &expected[name], "snapshot {name}");
        }
        if told == Some("removed") && !stores.has_image() {
            assert!(trees.is_empty() && stores.content.list(&stores.ns).unwrap().is_empty(), "something came back");
        }
        let rows = stores.snapshots.list(&stores.ns, OVERLAY).unwrap().len();
        assert_eq!(fs::read_dir(dir.join("snapshots").join(OVERLAY)).unwrap().count(), rows, "a folder without a row");
    }
    assert_eq!(fsck::check(dir).unwrap().1, []);
    let stores = Stores::open(dir);
    stores.pull(reference);
    let left = stores.snapshots.list(&stores.ns, OVERLAY).unwrap();
    for key in left.iter().map(|info| info.name.as_str()).filter(|name| [OWN, "key"].contains(name)) {
        stores.snapshots.remove(&stores.ns, OVERLAY, key).unwrap();
    }
    stores.commit_own(&stores.top());
    assert_eq!(&stores.trees(), expected, "after the same pull");
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_store_that_is_whole() {
    if let Some(place) = std::env::var_os(PLACE) {
        return work(Path::new(&place), &std::env::var(REFERENCE).unwrap());
    }
    let registry = Registry::start();
    // On a tmpfs, where a number of an inode is not used twice.
    let here = tempfile::tempdir_in("/dev/shm").unwrap();
    let reference = registry.reference();

    let first = here.path().join("expected");
    fs::create_dir(&first).unwrap();
    let stores = Stores::open(&first);
    stores.pull(&reference);
    stores.commit_own(&stores.top());
    let expected = stores.trees();
    assert_eq!(expected.len(), 3);
    drop(stores);

    let place = here.path().join("recorded");
    fs::create_dir(&place).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_power_cut_at_any_moment_leaves_a_store_that_is_whole", "--nocapture", "--test-threads=1"])
        .env(PLACE, &place)
        .env(REFERENCE, &reference);
    let steps = tracer::record(command, &place);
    let ended = steps.iter().any(|step| matches!(step, Step::Told(told) if told == "pulled again"));
    assert!(ended, "it was not recorded to its end");

    let ways = |n: usize| [Lost::Nothing, Lost::Bytes, Lost::All, Lost::Some(n as u64)];
    let all: Vec<_> = (0..=steps.len()).flat_map(|n| ways(n).map(|lost| (n, lost))).collect();
    let wanted = std::env::var("TARE_POWER_CUTS").map_or(SAMPLE, |cuts| cuts.parse().unwrap());
    let stride = (all.len() / wanted) | 1; // odd, so that each way has its turn
    println!("{} steps, {} cuts", steps.len(), all.len() / stride);
    assert!(steps.len() > 200, "only {} steps were recorded", steps.len());
    for (n, lost) in all.into_iter().step_by(stride) {
        let dir = here.path().join("cut");
        fs::create_dir(&dir).unwrap();
        disk::rebuild(&steps[..n], &place, lost, &dir);
        let told = steps[..n].iter().rev().find_map(|step| match step {
            Step::Told(told) => Some(told.as_str()),
            _ => None,
        });
        let whole = std::panic::catch_unwind(|| assert_whole(&dir, told, &expected, &reference));
        if whole.is_err() {
            let brief = |step: &Step| format!("{step:?}").chars().take(300).collect::<String>();
            let last: Vec<_> = steps[..n].iter().rev().take(3).map(brief).collect();
            panic!("cut after {n} of {} steps, {lost:?} lost, {told:?} told; the last steps: {last:#?}", steps.len());
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
