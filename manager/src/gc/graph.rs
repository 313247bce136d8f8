//! Everything in one namespace, and how it hangs together.

use std::collections::{HashMap, HashSet};

use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::services::content::v1::Info;
use tare_proto::containerd::services::images::v1::Image;

use super::expired;
use crate::error::Result;
use crate::names::{Labels, Namespace};
use crate::snapshot::{self, Row};
use crate::store::{Rows, kind};

const ROOT: &str = "containerd.io/gc.root";
const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";

/// Something that is reached or not, by the name of its row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    Content(String),
    Snapshot(String),
    Image(String),
    Container(String),
}

impl Node {
    pub fn snapshot(snapshotter: &str, key: &str) -> Node {
        Node::Snapshot(snapshot::name(snapshotter, key))
    }

    /// What a label of this kind names: `content`, `content.l.0`, `snapshot.overlayfs`, `snapshot.overlayfs/name`, `image`,
    /// `container`, …
    fn labelled(kind: &str, value: &str) -> Option<Node> {
        let (kind, rest) = kind.split_once(['.', '/']).unwrap_or((kind, ""));
        match kind {
            "content" => Some(Node::Content(value.to_owned())),
            "image" => Some(Node::Image(value.to_owned())),
            "container" => Some(Node::Container(value.to_owned())),
            "snapshot" if !rest.is_empty() => {
                Some(Node::snapshot(rest.split_once('/').map_or(rest, |(snapshotter, _)| snapshotter), value))
            }
            _ => None,
        }
    }
}

#[derive(Default)]
pub struct Graph {
    /// All there is, each with what it keeps.
    edges: HashMap<Node, Vec<Node>>,
    /// A snapshot's parent, without which it cannot be.
    parents: HashMap<Node, Node>,
    roots: Vec<Node>,
}

impl Graph {
    /// # Errors
    /// The database is damaged.
    pub fn read(rows: &Rows<'_>, namespace: &Namespace) -> Result<Graph> {
        let mut graph = Graph::default();
        for (name, image) in rows.list::<Image>(kind::IMAGE, namespace)? {
            let node = Node::Image(name);
            let target = image.target.map(|target| Node::Content(target.digest));
            if !expired(&image.labels) {
                graph.roots.push(node.clone());
            }
            graph.add(node, target, &image.labels);
        }
        for (name, container) in rows.list::<Container>(kind::CONTAINER, namespace)? {
            let node = Node::Container(name);
            let snapshot = (!container.snapshot_key.is_empty())
                .then(|| Node::snapshot(&container.snapshotter, &container.snapshot_key));
            graph.roots.push(node.clone());
            graph.add(node, snapshot, &container.labels);
        }
        for (name, blob) in rows.list::<Info>(kind::BLOB, namespace)? {
            graph.add_marked(Node::Content(name), None, &blob.labels);
        }
        for (name, row) in rows.list::<Row>(kind::SNAPSHOT, namespace)? {
            let info = row.info.unwrap_or_default();
            let snapshotter = name.split('\0').next().unwrap_or_default();
            let parent = (!info.parent.is_empty()).then(|| Node::snapshot(snapshotter, &info.parent));
            let node = Node::Snapshot(name);
            if let Some(parent) = &parent {
                graph.parents.insert(node.clone(), parent.clone());
            }
            graph.add_marked(node, parent, &info.labels);
        }
        Ok(graph)
    }

    /// Adds something that its label can make a root.
    fn add_marked(&mut self, node: Node, keeps: Option<Node>, labels: &Labels) {
        if labels.get(ROOT).is_some_and(|value| !value.is_empty()) {
            self.roots.push(node.clone());
        }
        self.add(node, keeps, labels);
    }

    fn add(&mut self, node: Node, keeps: Option<Node>, labels: &Labels) {
        for (label, value) in labels {
            if let Some(named) = label.strip_prefix(BACK_REF).and_then(|kind| Node::labelled(kind, value)) {
                self.edges.entry(named).or_default().push(node.clone());
            }
        }
        let referred = labels.iter().filter_map(|(label, value)| Node::labelled(label.strip_prefix(REF)?, value));
        self.edges.entry(node).or_default().extend(keeps.into_iter().chain(referred));
    }

    /// What neither a root nor something that is held reaches. Of what is held flat, only its parents are held with it.
    pub fn unreached(mut self, held: Vec<(Node, bool)>) -> Vec<Node> {
        let mut kept: HashSet<Node> = HashSet::new();
        let mut open = std::mem::take(&mut self.roots);
        let mut flat = Vec::new();
        for (node, follow) in held {
            if follow { open.push(node) } else { flat.push(node) }
        }
        while let Some(node) = open.pop() {
            if let Some(edges) = self.edges.get(&node)
                && !kept.contains(&node)
            {
                open.extend(edges.iter().cloned());
                kept.insert(node);
            }
        }
        for node in flat {
            let mut next = Some(node);
            while let Some(node) = next.filter(|node| !kept.contains(node)) {
                next = self.parents.get(&node).cloned();
                kept.insert(node);
            }
        }
        self.edges.into_keys().filter(|node| !kept.contains(node)).collect()
    }
}
