//! Everything in one namespace, and how it hangs together.

use std::collections::HashMap;
use std::rc::Rc;

use tare_proto::containerd::services::containers::v1::Container;
use tare_proto::containerd::services::content::v1::Info;
use tare_proto::containerd::services::images::v1::Image;
use tare_proto::containerd::services::leases::v1::Resource;
use tare_proto::containerd::types::Sandbox;

use super::expired;
use crate::error::Result;
use crate::names::{Labels, Namespace};
use crate::snapshot::{self, Row};
use crate::store::{Rows, View, kind};

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
    Sandbox(String),
}

impl Node {
    pub fn snapshot(snapshotter: &str, key: &str) -> Node {
        Node::Snapshot(snapshot::name(snapshotter, key))
    }

    /// What a lease's resource names; nothing for a write under way.
    pub fn leased(resource: &Resource) -> Option<Node> {
        let id = resource.id.clone();
        match resource.r#type.split_once('/') {
            None if resource.r#type == "content" => Some(Node::Content(id)),
            None if resource.r#type == "images" => Some(Node::Image(id)),
            Some(("snapshots", snapshotter)) => Some(Node::snapshot(snapshotter, &id)),
            _ => None,
        }
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

/// A row as the collector sees it.
struct Seen {
    node: Node,
    /// What it keeps, for what it is.
    keeps: Option<Node>,
    labels: Labels,
    root: bool,
}

impl Seen {
    fn image(name: &str, image: Image) -> Seen {
        let keeps = image.target.map(|target| Node::Content(target.digest));
        Seen { node: Node::Image(name.to_owned()), keeps, root: !expired(&image.labels), labels: image.labels }
    }

    fn container(name: &str, container: Container) -> Seen {
        let keeps = (!container.snapshot_key.is_empty())
            .then(|| Node::snapshot(&container.snapshotter, &container.snapshot_key));
        Seen { node: Node::Container(name.to_owned()), keeps, labels: container.labels, root: true }
    }

    fn sandbox(name: &str, sandbox: Sandbox) -> Seen {
        Seen { node: Node::Sandbox(name.to_owned()), keeps: None, labels: sandbox.labels, root: true }
    }

    fn blob(name: &str, info: Info) -> Seen {
        let root = marked(&info.labels);
        Seen { node: Node::Content(name.to_owned()), keeps: None, labels: info.labels, root }
    }

    fn snapshot(name: &str, row: Row) -> Seen {
        let info = row.info.unwrap_or_default();
        let snapshotter = name.split('\0').next().unwrap_or_default();
        let keeps = (!info.parent.is_empty()).then(|| Node::snapshot(snapshotter, &info.parent));
        let root = marked(&info.labels);
        Seen { node: Node::Snapshot(name.to_owned()), keeps, labels: info.labels, root }
    }

    fn refers(&self) -> impl Iterator<Item = Node> + '_ {
        let labelled = |(label, value): (&String, &String)| Node::labelled(label.strip_prefix(REF)?, value);
        self.keeps.iter().cloned().chain(self.labels.iter().filter_map(labelled))
    }

    /// Whom it lives with.
    fn lives_with(&self) -> impl Iterator<Item = Node> + '_ {
        self.labels.iter().filter_map(|(label, value)| Node::labelled(label.strip_prefix(BACK_REF)?, value))
    }
}

fn marked(labels: &Labels) -> bool {
    labels.get(ROOT).is_some_and(|value| !value.is_empty())
}

/// What a row that was just written is and refers to.
///
/// # Errors
/// The database is damaged.
pub fn refers(rows: &Rows<'_>, namespace: &Namespace, kind: &str, name: &str) -> Result<Vec<Node>> {
    let seen = match kind {
        kind::IMAGE => rows.get(kind, namespace, name)?.map(|row| Seen::image(name, row)),
        kind::CONTAINER => rows.get(kind, namespace, name)?.map(|row| Seen::container(name, row)),
        kind::SANDBOX => rows.get(kind, namespace, name)?.map(|row| Seen::sandbox(name, row)),
        kind::BLOB => rows.get(kind, namespace, name)?.map(|row| Seen::blob(name, row)),
        kind::SNAPSHOT => rows.get(kind, namespace, name)?.map(|row| Seen::snapshot(name, row)),
        kind::RESOURCE => {
            let resource = rows.get::<Resource>(kind, namespace, name)?;
            return Ok(resource.and_then(|resource| Node::leased(&resource)).into_iter().collect());
        }
        _ => None,
    };
    Ok(seen.map(|seen| seen.refers().chain([seen.node.clone()]).collect()).unwrap_or_default())
}

/// Nodes are numbers here: there may be a hundred thousand.
#[derive(Default)]
pub struct Graph {
    numbers: HashMap<Rc<Node>, usize>,
    nodes: Vec<Rc<Node>>,
    /// What each keeps.
    edges: Vec<Vec<usize>>,
    /// Whether it has a row, and is not only named.
    there: Vec<bool>,
    /// A snapshot's parent, without which it cannot be.
    parents: HashMap<usize, usize>,
    roots: Vec<usize>,
}

impl Graph {
    /// # Errors
    /// The database is damaged.
    pub fn read(view: &View, namespace: &Namespace) -> Result<Graph> {
        let (mut graph, ns) = (Graph::default(), namespace.as_str());
        view.each(kind::IMAGE, ns, "", |name, row| graph.add(&Seen::image(name, row)))?;
        view.each(kind::CONTAINER, ns, "", |name, row| graph.add(&Seen::container(name, row)))?;
        view.each(kind::SANDBOX, ns, "", |name, row| graph.add(&Seen::sandbox(name, row)))?;
        view.each(kind::BLOB, ns, "", |name, row| graph.add(&Seen::blob(name, row)))?;
        view.each(kind::SNAPSHOT, ns, "", |name, row| graph.add(&Seen::snapshot(name, row)))?;
        Ok(graph)
    }

    fn add(&mut self, seen: &Seen) {
        let own = self.number(&seen.node);
        self.there[own] = true;
        if seen.root {
            self.roots.push(own);
        }
        for other in seen.lives_with() {
            let other = self.number(&other);
            self.edges[other].push(own);
        }
        for other in seen.refers() {
            let other = self.number(&other);
            self.edges[own].push(other);
        }
        if let (Node::Snapshot(_), Some(parent)) = (&seen.node, &seen.keeps) {
            let parent = self.number(parent);
            self.parents.insert(own, parent);
        }
    }

    fn number(&mut self, node: &Node) -> usize {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        let (node, number) = (Rc::new(node.clone()), self.nodes.len());
        self.numbers.insert(node.clone(), number);
        self.nodes.push(node);
        self.edges.push(Vec::new());
        self.there.push(false);
        number
    }

    /// Finds what neither a root nor something that is held reaches. Of what is held flat, only its parents are held with
    /// it.
    pub fn mark(self, held: Vec<(Node, bool)>) -> Marked {
        let mut kept = vec![false; self.nodes.len()];
        let held = held.iter().filter_map(|(node, follow)| Some((*self.numbers.get(node)?, *follow)));
        let (follow, flat): (Vec<_>, Vec<_>) = held.partition(|(_, follow)| *follow);
        let open = self.roots.iter().copied().chain(follow.into_iter().map(|(node, _)| node)).collect();
        self.reach(open, &mut kept);
        for (node, _) in flat {
            let mut next = Some(node);
            while let Some(node) = next.filter(|node| !kept[*node]) {
                kept[node] = true;
                next = self.parents.get(&node).copied();
            }
        }
        let order = self.referring_first(&kept);
        Marked { graph: self, kept, order }
    }

    /// Marks these and what they reach; what has no row passes nothing on.
    fn reach(&self, mut open: Vec<usize>, kept: &mut [bool]) {
        while let Some(node) = open.pop() {
            if self.there[node] && !kept[node] {
                kept[node] = true;
                open.extend(&self.edges[node]);
            }
        }
    }

    /// What is not kept, last first: taken from its end, nothing comes before something that refers to it. (Where labels
    /// make a circle there is no such order.)
    fn referring_first(&self, kept: &[bool]) -> Vec<usize> {
        let mut seen = kept.to_vec();
        let mut order = Vec::new();
        for first in 0..self.nodes.len() {
            // Depth first, and a node is written down when all that it refers to is.
            let mut path = vec![(first, 0)];
            if seen[first] || !self.there[first] {
                continue;
            }
            seen[first] = true;
            while let Some((node, edge)) = path.pop() {
                match self.edges[node].get(edge) {
                    Some(&next) => {
                        path.push((node, edge + 1));
                        if !seen[next] && self.there[next] {
                            seen[next] = true;
                            path.push((next, 0));
                        }
                    }
                    None => order.push(node),
                }
            }
        }
        order
    }
}

/// What is to go.
pub struct Marked {
    graph: Graph,
    kept: Vec<bool>,
    order: Vec<usize>,
}

impl Marked {
    /// The next that are to go, what refers before what it refers to.
    pub fn next(&mut self, most: usize) -> Vec<Node> {
        let from = self.order.len().saturating_sub(most);
        self.order.drain(from..).rev().map(|node| Node::clone(&self.graph.nodes[node])).collect()
    }

    /// Keeps these, which somebody names by now, with all that they reach.
    pub fn spare(&mut self, nodes: Vec<Node>) {
        let open = nodes.iter().filter_map(|node| self.graph.numbers.get(node).copied()).collect();
        self.graph.reach(open, &mut self.kept);
    }

    pub fn is_spared(&self, node: &Node) -> bool {
        self.graph.numbers.get(node).is_some_and(|node| self.kept[*node])
    }
}
