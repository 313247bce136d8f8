//! The collector: removes what nothing reaches.
//!
//! Roots are images, containers, what leases hold, and whatever has a label `containerd.io/gc.root`. From there it follows
//! targets, parents and the labels `containerd.io/gc.ref.…`; a `gc.bref.…` label keeps its object for as long as the one
//! it names.
//!
//! Source: containerd core/metadata/gc.go, docs/garbage-collection.md.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::services::content::v1::Info;
use tare_proto::containerd::services::images::v1::Image;
use tare_proto::containerd::services::leases::v1::{Lease, Resource};

use crate::content::Content;
use crate::error::Result;
use crate::names::{Digest, Labels, Namespace};
use crate::snapshot::{OVERLAY, Row, Snapshots};
use crate::store::{Store, kind};

const ROOT: &str = "containerd.io/gc.root";
const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";
const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";

/// Something that is reached or not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    Content(String),
    Snapshot(String),
    Image(String),
}

/// Everything in one namespace, and how it hangs together.
struct Graph {
    images: HashMap<String, Image>,
    blobs: HashMap<String, Info>,
    snapshots: HashMap<String, Row>,
    /// From an object to those that live as long as it does.
    back: HashMap<Node, Vec<Node>>,
}

/// Removes, in all namespaces, rows that nothing reaches, then files and folders that no row names.
///
/// # Errors
/// The database is damaged, or a file cannot be removed.
pub fn collect(store: &Store, content: &Content, snapshots: &Snapshots) -> Result<()> {
    for namespace in store.namespaces()? {
        collect_namespace(store, &namespace)?;
    }
    content.sweep()?;
    snapshots.sweep()
}

fn collect_namespace(store: &Store, namespace: &Namespace) -> Result<()> {
    let graph = Graph::read(store, namespace)?;
    let kept = graph.reach(&roots(store, namespace, &graph)?);
    let blobs: Vec<&String> =
        graph.blobs.keys().filter(|digest| !kept.contains(&Node::Content((*digest).clone()))).collect();
    let gone: Vec<&String> =
        graph.snapshots.keys().filter(|key| !kept.contains(&Node::Snapshot((*key).clone()))).collect();
    if blobs.is_empty() && gone.is_empty() {
        return Ok(());
    }
    store.change(|rows| {
        for digest in blobs {
            rows.remove(kind::BLOB, namespace.as_str(), digest)?;
        }
        for key in gone {
            rows.remove(kind::SNAPSHOT, namespace.as_str(), &format!("{OVERLAY}\0{key}"))?;
        }
        Ok(())
    })
}

/// Roots, each with whether its labels are followed.
fn roots(store: &Store, namespace: &Namespace, graph: &Graph) -> Result<Vec<(Node, bool)>> {
    let mut roots = Vec::new();
    for (name, image) in &graph.images {
        if !expired(&image.labels) {
            roots.push((Node::Image(name.clone()), true));
        }
    }
    for (_, container) in store.list::<Container>(kind::CONTAINER, namespace)? {
        if !container.snapshot_key.is_empty() {
            roots.push((Node::Snapshot(container.snapshot_key.clone()), true));
        }
        roots.extend(references(&container.labels).map(|node| (node, true)));
    }
    for (name, resource) in store.list::<Resource>(kind::RESOURCE, namespace)? {
        let lease = name.split('\0').next().unwrap_or_default();
        let Some(lease) = store.get::<Lease>(kind::LEASE, namespace, lease)? else { continue };
        if expired(&lease.labels) {
            continue;
        }
        let node = match resource.r#type.as_str() {
            "content" => Node::Content(resource.id),
            "images" => Node::Image(resource.id),
            kind if kind.starts_with("snapshots/") => Node::Snapshot(resource.id),
            _ => continue, // ingests are kept for a day anyway
        };
        roots.push((node, !lease.labels.contains_key(FLAT)));
    }
    let marked = |labels: &Labels| labels.get(ROOT).is_some_and(|value| !value.is_empty());
    roots.extend(
        graph
            .blobs
            .iter()
            .filter(|(_, blob)| marked(&blob.labels))
            .map(|(digest, _)| (Node::Content(digest.clone()), true)),
    );
    let rows = graph.snapshots.iter().filter(|(_, row)| row.info.as_ref().is_some_and(|info| marked(&info.labels)));
    roots.extend(rows.map(|(key, _)| (Node::Snapshot(key.clone()), true)));
    Ok(roots)
}

/// RFC 3339; what cannot be read has not expired.
fn expired(labels: &Labels) -> bool {
    let at = labels.get(EXPIRE).and_then(|text| humantime::parse_rfc3339_weak(text.trim_end_matches('Z')).ok());
    at.is_some_and(|at| at <= SystemTime::now())
}

/// What labels point to.
fn references(labels: &Labels) -> impl Iterator<Item = Node> {
    labels.iter().filter_map(|(label, value)| node(label.strip_prefix(REF)?, value))
}

/// `content`, `content.l.0`, `snapshot.overlayfs`, `snapshot.overlayfs/name`, `image`, … and what it names.
fn node(kind: &str, value: &str) -> Option<Node> {
    let (kind, rest) = kind.split_once(['.', '/']).unwrap_or((kind, ""));
    match kind {
        "content" => Some(Node::Content(value.to_owned())),
        "image" => Some(Node::Image(value.to_owned())),
        "snapshot" if !rest.is_empty() => Some(Node::Snapshot(value.to_owned())),
        _ => None,
    }
}

impl Graph {
    fn read(store: &Store, namespace: &Namespace) -> Result<Graph> {
        let mut graph = Graph {
            images: store.list(kind::IMAGE, namespace)?.into_iter().collect(),
            blobs: store.list(kind::BLOB, namespace)?.into_iter().collect(),
            snapshots: HashMap::new(),
            back: HashMap::new(),
        };
        for (name, row) in store.list::<Row>(kind::SNAPSHOT, namespace)? {
            let key = name.split_once('\0').map_or(name.clone(), |(_, key)| key.to_owned());
            graph.snapshots.insert(key, row);
        }
        let mut back: HashMap<Node, Vec<Node>> = HashMap::new();
        let mut note = |own: Node, labels: &Labels| {
            for (label, value) in labels {
                if let Some(named) = label.strip_prefix(BACK_REF).and_then(|kind| node(kind, value)) {
                    back.entry(named).or_default().push(own.clone());
                }
            }
        };
        for (digest, blob) in &graph.blobs {
            note(Node::Content(digest.clone()), &blob.labels);
        }
        for (key, row) in &graph.snapshots {
            note(Node::Snapshot(key.clone()), &row.info.clone().unwrap_or_default().labels);
        }
        graph.back = back;
        Ok(graph)
    }

    fn reach(&self, roots: &[(Node, bool)]) -> HashSet<Node> {
        let mut kept = HashSet::new();
        let mut flat = HashSet::new();
        let mut open: Vec<Node> = Vec::new();
        for (node, follow) in roots {
            if *follow {
                open.push(node.clone());
            } else {
                flat.insert(node.clone());
            }
        }
        while let Some(node) = open.pop() {
            if kept.insert(node.clone()) {
                open.extend(self.edges(&node));
            }
        }
        // A flat lease holds what it lists, and a snapshot's parents, which it cannot be without.
        for node in flat {
            let mut next = Some(node);
            while let Some(node) = next.take().filter(|node| kept.insert(node.clone())) {
                if let Node::Snapshot(key) = &node {
                    next = self.parent(key).map(Node::Snapshot);
                }
            }
        }
        kept
    }

    fn parent(&self, key: &str) -> Option<String> {
        let parent = self.snapshots.get(key)?.info.as_ref()?.parent.clone();
        (!parent.is_empty()).then_some(parent)
    }

    fn edges(&self, node: &Node) -> Vec<Node> {
        let mut edges = self.back.get(node).cloned().unwrap_or_default();
        match node {
            Node::Image(name) => {
                if let Some(image) = self.images.get(name) {
                    edges.extend(image.target.as_ref().map(|target| Node::Content(target.digest.clone())));
                    edges.extend(references(&image.labels));
                }
            }
            Node::Content(digest) => {
                if let Some(blob) = self.blobs.get(digest) {
                    edges.extend(references(&blob.labels));
                }
            }
            Node::Snapshot(key) => {
                edges.extend(self.parent(key).map(Node::Snapshot));
                if let Some(info) = self.snapshots.get(key).and_then(|row| row.info.as_ref()) {
                    edges.extend(references(&info.labels));
                }
            }
        }
        edges
    }
}

/// Writes that a lease holds something, before it is there: then there is no moment at which it is not held.
///
/// # Errors
/// The disk is full.
pub fn hold(store: &Store, namespace: &Namespace, lease: &str, things: &[(&str, String)]) -> Result<()> {
    store.change(|rows| {
        for (kind, id) in things {
            let resource = Resource { id: id.clone(), r#type: (*kind).into() };
            rows.put(kind::RESOURCE, namespace, &format!("{lease}\0{kind}\0{id}"), &resource)?;
        }
        Ok(())
    })
}

/// Ends a lease of our own with all it holds.
///
/// # Errors
/// The database is damaged.
pub fn release(store: &Store, namespace: &Namespace, lease: &str) -> Result<()> {
    store.change(|rows| {
        for name in rows.names(kind::RESOURCE, namespace.as_str(), &format!("{lease}\0"))? {
            rows.remove(kind::RESOURCE, namespace.as_str(), &name)?;
        }
        rows.remove(kind::LEASE, namespace.as_str(), lease).map(|_| ())
    })
}

/// A digest as a node's name, for callers that hold one.
pub fn content(digest: &Digest) -> (&'static str, String) {
    ("content", digest.to_string())
}

#[cfg(test)]
mod tests {
    use tare_proto::containerd::types::Descriptor;

    use super::*;

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
}
