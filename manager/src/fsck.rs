//! `tared fsck`: whether what the rows say is on disk, byte by byte; the daemon must not run meanwhile.
//!
//! Repairing takes away what is damaged, so that it is missing and no longer wrong: the next pull of an image fetches and
//! unpacks what is missing, and nothing else. Whatever is whole stays.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::services::content::v1::Info;
use tare_proto::containerd::services::images::v1::Image;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::names::{Digest, Hasher, Namespace};
use crate::snapshot::{self, Row, Snapshots, rows};
use crate::store::{self, Saved, Store, kind};

/// What is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub namespace: Namespace,
    what: What,
    why: String,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Content(Digest),
    /// Snapshotter and key.
    Snapshot(String, String),
    Image(String),
    Container(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}: ", self.namespace)?;
        match &self.what {
            What::Content(digest) => write!(f, "content {digest}: ")?,
            What::Snapshot(snapshotter, key) => write!(f, "snapshot {key} of {snapshotter}: ")?,
            What::Image(name) => write!(f, "image {name}: ")?,
            What::Container(id) => write!(f, "container {id}: ")?,
        }
        f.write_str(&self.why)
    }
}

/// Saves what is whole of a database that is damaged; nothing if it is not.
///
/// # Errors
/// The database is in use, or nothing in it can be read.
pub fn save(root: &Path) -> Result<Option<Saved>> {
    let path = root.join("tared.db");
    Store::check(&path)?.map(|_| store::salvage(&path)).transpose()
}

/// Looks at everything below a daemon's root.
///
/// # Errors
/// The database is in use or cannot be read, or a folder cannot.
pub fn check(root: &Path) -> Result<(Checked, Vec<Finding>)> {
    let store = Store::open(&root.join("tared.db"))?;
    let content = Content::open(root, store.clone())?;
    let snapshots = Snapshots::open(root, store.clone())?;
    let checked = Checked { store, content, snapshots };
    let mut findings = Vec::new();
    for namespace in checked.store.namespaces()? {
        checked.namespace(&namespace, &mut findings)?;
    }
    Ok((checked, findings))
}

/// Stores that were looked at.
pub struct Checked {
    store: Store,
    content: Content,
    snapshots: Snapshots,
}

impl Checked {
    /// Takes away what is damaged. Images and containers stay as they are: what they miss comes with the next pull.
    ///
    /// # Errors
    /// The disk is full, or a file cannot be removed.
    pub fn repair(&self, findings: &[Finding]) -> Result<()> {
        for finding in findings {
            match &finding.what {
                What::Content(digest) => self.content.delete(&finding.namespace, digest)?,
                What::Snapshot(snapshotter, key) => {
                    self.store.change(|rows| rows::remove(rows, &finding.namespace, snapshotter, key))?;
                }
                What::Image(_) | What::Container(_) => {}
            }
        }
        Ok(())
    }

    fn namespace(&self, namespace: &Namespace, findings: &mut Vec<Finding>) -> Result<()> {
        let mut find = |what, why| findings.push(Finding { namespace: namespace.clone(), what, why });
        let blobs: HashMap<String, Info> = self.store.list(kind::BLOB, namespace)?.into_iter().collect();
        let mut damaged = BTreeSet::new();
        let mut names: Vec<_> = blobs.keys().collect();
        names.sort();
        for name in names {
            let digest = Digest::parse(name)?;
            if let Some(why) = self.blob(namespace, &digest)? {
                damaged.insert(name.clone());
                find(What::Content(digest), why);
            }
        }
        let lost = self.lost_snapshots(namespace)?;
        for (snapshotter, key, why) in &lost {
            find(What::Snapshot(snapshotter.clone(), key.clone()), why.clone());
        }
        for (name, image) in self.store.list::<Image>(kind::IMAGE, namespace)? {
            let target = image.target.unwrap_or_default().digest;
            if let Some(bad) = reaches(&blobs, &damaged, &target) {
                find(What::Image(name), format!("it needs content {bad}: pull it again"));
            }
        }
        for (id, container) in self.store.list::<Container>(kind::CONTAINER, namespace)? {
            let its = |(snapshotter, key, _): &&(String, String, String)| {
                *snapshotter == container.snapshotter && *key == container.snapshot_key
            };
            if lost.iter().find(its).is_some() {
                find(What::Container(id), format!("its snapshot {} is lost", container.snapshot_key));
            }
        }
        Ok(())
    }

    /// What is wrong with a blob's file.
    fn blob(&self, namespace: &Namespace, digest: &Digest) -> Result<Option<String>> {
        let mut file = match self.content.reader(namespace, digest) {
            Ok(file) => file,
            Err(error) => return Ok(Some(error.to_string())),
        };
        Ok(match hash(&mut file, digest) {
            Ok(found) if found == *digest => None,
            Ok(found) => Some(format!("its bytes are {found}")),
            Err(error) => Some(Error::io("reading it", &error).to_string()),
        })
    }

    /// Snapshots without their folder, and those that lie on one of them; what lies above comes first.
    fn lost_snapshots(&self, namespace: &Namespace) -> Result<Vec<(String, String, String)>> {
        let rows = self.store.list::<Row>(kind::SNAPSHOT, namespace)?;
        let known: HashSet<String> = rows.iter().map(|(name, _)| name.clone()).collect();
        let mut lost: Vec<(String, String, String)> = Vec::new();
        let mut left: Vec<_> = rows
            .into_iter()
            .filter_map(|(name, row)| {
                let (snapshotter, key) = name.split_once('\0')?;
                Some((snapshotter.to_owned(), key.to_owned(), row))
            })
            .collect();
        loop {
            let before = lost.len();
            let mut kept = Vec::new();
            for (snapshotter, key, row) in left {
                let parent = row.info.unwrap_or_default().parent;
                let on_lost = lost.iter().any(|(other, lost, _)| *other == snapshotter && *lost == parent)
                    || !parent.is_empty() && !known.contains(&snapshot::name(&snapshotter, &parent));
                let info = tare_proto::containerd::services::snapshots::v1::Info { parent, ..Default::default() };
                let row = Row { info: Some(info), ..row };
                if !self.snapshots.has_folder(&snapshotter, row.number) {
                    lost.push((snapshotter, key, "its folder is missing".into()));
                } else if on_lost {
                    lost.push((snapshotter, key, "what it lies on is lost".into()));
                } else {
                    kept.push((snapshotter, key, row));
                }
            }
            left = kept;
            if lost.len() == before {
                break;
            }
        }
        lost.reverse();
        Ok(lost)
    }
}

/// The first blob that is missing or damaged of those that a blob refers to, itself included.
fn reaches(blobs: &HashMap<String, Info>, damaged: &BTreeSet<String>, from: &str) -> Option<String> {
    let (mut open, mut seen) = (vec![from.to_owned()], BTreeSet::new());
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        match blobs.get(&name) {
            // What an image's other platforms refer to was never fetched; that is no damage.
            None if name != from => {}
            Some(info) if !damaged.contains(&name) => {
                let refers = info.labels.iter().filter(|(label, _)| label.starts_with("containerd.io/gc.ref.content"));
                open.extend(refers.map(|(_, digest)| digest.clone()));
            }
            _ => return Some(name),
        }
    }
    None
}

fn hash(file: &mut impl Read, like: &Digest) -> std::io::Result<Digest> {
    let (mut hash, mut buffer) = (Hasher::new(like.algorithm()), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.digest()),
            length => hash.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Labels;
    use crate::snapshot::OVERLAY;
    use tare_proto::containerd::types::Descriptor;

    /// Each page in turn; whatever it held, the rest is saved and the daemon's stores open.
    #[test]
    fn a_damaged_page_of_the_database_is_named_and_what_is_whole_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ns) = (dir.path().join("tared.db"), Namespace::parse("n").unwrap());
        let store = Store::open(&path).unwrap();
        const IMAGES: usize = 200;
        store
            .change(|rows| {
                (0..IMAGES).try_for_each(|n| {
                    let labels = Labels::from([("l".into(), "x".repeat(200))]);
                    let image = Image { name: format!("i{n:03}"), labels, ..Default::default() };
                    rows.put(kind::IMAGE, &ns, &image.name, &image)
                })
            })
            .unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        let (mut saved_most, mut hopeless) = (0, 0);
        for page in (1..whole.len() / 4096).filter(|page| whole[page * 4096..][..4096].iter().any(|byte| *byte != 0)) {
            let mut bytes = whole.clone();
            bytes[page * 4096 + 2000] ^= 0x40;
            std::fs::write(&path, bytes).unwrap();
            let Some(why) = Store::check(&path).unwrap() else { continue }; // the page is not in use
            let refused = Store::open(&path).map(|_| ()).unwrap_err().to_string();
            assert!(
                refused.contains("tared.db: it is damaged") && refused.contains("fsck --repair"),
                "{why}: {refused}"
            );
            let saved = match save(dir.path()) {
                Ok(saved) => saved.unwrap(),
                Err(error) => {
                    assert!(error.to_string().contains("nothing in it can be read"), "{error}");
                    hopeless += 1; // the page that leads to all others
                    continue;
                }
            };
            assert!(saved.damaged.exists());
            let images = Store::open(&path).unwrap().list::<Image>(kind::IMAGE, &ns).unwrap();
            assert!(images.iter().all(|(name, image)| *name == image.name), "a row is not what it was");
            saved_most = saved_most.max(images.len());
            check(dir.path()).unwrap();
        }
        assert!(saved_most > IMAGES / 2, "{saved_most} of {IMAGES} images were saved");
        assert!(hopeless <= 2, "{hopeless} pages took everything with them");
    }

    #[test]
    fn damage_is_found_by_name_taken_away_and_the_rest_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ns = Namespace::parse("n").unwrap();
        let (flipped, whole);
        {
            let store = Store::open(&dir.path().join("tared.db")).unwrap();
            let content = Content::open(dir.path(), store.clone()).unwrap();
            let snapshots = Snapshots::open(dir.path(), store.clone()).unwrap();
            let blob = |text: &str, labels: Labels| {
                let mut writer = content.writer(&ns, text, 0, None).unwrap();
                writer.write(text.as_bytes()).unwrap();
                writer.commit(0, None, &labels).unwrap()
            };
            flipped = blob("layer", Labels::new());
            whole = blob("manifest", [("containerd.io/gc.ref.content.l.0".to_owned(), flipped.to_string())].into());
            let target = Some(Descriptor { digest: whole.to_string(), ..Default::default() });
            let image = Image { name: "i".into(), target, ..Default::default() };
            store.change(|rows| rows.put(kind::IMAGE, &ns, "i", &image)).unwrap();
            for (key, parent, name) in [("a", "", "base"), ("b", "base", "top"), ("c", "", "other")] {
                snapshots.prepare(&ns, OVERLAY, key, parent, &Labels::new(), false).unwrap();
                snapshots.commit(&ns, OVERLAY, name, key, &Labels::new(), None).unwrap();
            }
        }
        assert_eq!(check(dir.path()).unwrap().1, []);
        std::fs::write(dir.path().join("blobs/sha256").join(flipped.hex()), "lAyer").unwrap();
        std::fs::remove_dir_all(dir.path().join("snapshots/overlayfs/1")).unwrap();
        let (checked, findings) = check(dir.path()).unwrap();
        let said: Vec<_> = findings.iter().map(ToString::to_string).collect();
        let expected = [
            format!("namespace n: content {flipped}: its bytes are {}", Digest::of(b"lAyer")),
            "namespace n: snapshot top of overlayfs: what it lies on is lost".into(),
            "namespace n: snapshot base of overlayfs: its folder is missing".into(),
            format!("namespace n: image i: it needs content {flipped}: pull it again"),
        ];
        assert_eq!(said, expected);
        checked.repair(&findings).unwrap();
        assert!(checked.content.info(&ns, &flipped).is_err() && checked.content.info(&ns, &whole).is_ok());
        assert_eq!(checked.snapshots.list(&ns, OVERLAY).unwrap().len(), 1);
        drop(checked);
        let left = check(dir.path()).unwrap().1;
        assert!(left.is_empty(), "{left:?}");
    }
}
