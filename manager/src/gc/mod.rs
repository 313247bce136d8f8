//! The collector: removes what nothing reaches.
//!
//! Roots are images, containers, sandboxes' labels, what leases hold, and whatever has a label `containerd.io/gc.root`. From
//! there it follows targets, parents and the labels `containerd.io/gc.ref.…`; a `gc.bref.…` label keeps its object for as
//! long as the one it names. What has expired, by its label, is no root: a lease then ends, and an image goes unless
//! something names it.
//!
//! ```text
//! watch ─▶ view: mark, while others write ─▶ a few rows at a time, in one change each:
//!                                            what the journal says was written since is spared with all that it reaches,
//!                                            of the rest, what refers goes before what it refers to
//!                                          ─▶ files and folders of the rows that went
//! ```
//!
//! So nobody waits longer than one small change takes, and at every moment what has a row has all that it refers to.
//!
//! Source: containerd core/metadata/gc.go, docs/garbage-collection.md.

mod expiry;
mod graph;

use std::collections::HashSet;

use tare_proto::containerd::services::leases::v1::{Lease, Resource};

use crate::content::Content;
use crate::error::Result;
use crate::names::{Digest, Namespace};
use crate::snapshot::{self, Row, Snapshots};
use crate::store::{Journal, Rows, Store, View, kind};
pub use expiry::after as expires_after;
use expiry::expired;
use graph::{Graph, Marked, Node};

/// A lease with this label holds what it lists and not what that refers to.
const FLAT: &str = "containerd.io/gc.flat";

/// How many rows go in one change: what a request may have to wait for.
const PIECE: usize = 200;

/// What went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gone {
    pub images: Vec<(Namespace, String)>,
    /// Namespace, snapshotter and key.
    pub snapshots: Vec<(Namespace, String, String)>,
    /// How many.
    pub blobs: usize,
}

/// Removes, in all namespaces, rows that nothing reaches, then their files and folders.
///
/// # Errors
/// The database is damaged, or a file cannot be removed.
pub fn collect(store: &Store, content: &Content, snapshots: &Snapshots) -> Result<Gone> {
    let (mut gone, mut ingests) = (Gone::default(), HashSet::new());
    for namespace in store.namespaces()? {
        end_leases(store, &namespace)?;
        let journal = store.watch()?;
        let view = store.view()?;
        let held = held(&view, &namespace)?;
        let marked = Graph::read(&view, &namespace)?.mark(held.nodes);
        ingests.extend(held.ingests.into_iter().map(|reference| (namespace.clone(), reference)));
        let removed = remove(store, &namespace, marked, &journal)?;
        drop(journal);
        discard(content, snapshots, &namespace, removed, &mut gone)?;
    }
    content.sweep_ingests(&ingests)?;
    Ok(gone)
}

/// A row that went: its node, and for a snapshot the row itself.
type Removed = (Node, Row);

fn remove(store: &Store, namespace: &Namespace, mut marked: Marked, journal: &Journal<'_>) -> Result<Vec<Removed>> {
    let mut removed = Vec::new();
    loop {
        let piece = marked.next(PIECE);
        if piece.is_empty() {
            return Ok(removed);
        }
        store.change(|rows| {
            for written in journal.take() {
                if written.namespace == namespace.as_str() {
                    marked.spare(graph::refers(rows, namespace, &written.kind, &written.name)?);
                }
            }
            for node in piece.iter().filter(|node| !marked.is_spared(node)) {
                removed.extend(remove_row(rows, namespace, node)?);
            }
            Ok(())
        })?;
    }
}

fn remove_row(rows: &mut Rows<'_>, namespace: &Namespace, node: &Node) -> Result<Option<Removed>> {
    let (kind, name) = match node {
        Node::Content(name) => (kind::BLOB, name),
        Node::Image(name) => (kind::IMAGE, name),
        Node::Snapshot(name) => {
            let (snapshotter, key) = name.split_once('\0').unwrap_or_default();
            let row = snapshot::rows::remove(rows, namespace, snapshotter, key)?;
            return Ok(row.map(|row| (node.clone(), row)));
        }
        Node::Container(_) | Node::Sandbox(_) => return Ok(None), // all are roots
    };
    // A client may have removed it meanwhile, and then its files are that client's.
    Ok(rows.remove(kind, namespace.as_str(), name)?.then(|| (node.clone(), Row::default())))
}

/// Removes the files of rows that went.
fn discard(
    content: &Content,
    snapshots: &Snapshots,
    namespace: &Namespace,
    removed: Vec<Removed>,
    gone: &mut Gone,
) -> Result<()> {
    for (node, row) in removed {
        match node {
            Node::Content(digest) => {
                content.discard(&Digest::parse(&digest)?)?;
                gone.blobs += 1;
            }
            Node::Snapshot(name) => {
                let (snapshotter, key) = name.split_once('\0').unwrap_or_default();
                snapshots.discard(namespace, snapshotter, &row)?;
                gone.snapshots.push((namespace.clone(), snapshotter.to_owned(), key.to_owned()));
            }
            Node::Image(name) => gone.images.push((namespace.clone(), name)),
            Node::Container(_) | Node::Sandbox(_) => {}
        }
    }
    Ok(())
}

/// Ends leases that have expired, such as one of a client that was killed.
fn end_leases(store: &Store, namespace: &Namespace) -> Result<()> {
    let mut ended = Vec::new();
    store.view()?.each(kind::LEASE, namespace.as_str(), "", |id, lease: Lease| {
        if expired(&lease.labels) {
            ended.push(id.to_owned());
        }
    })?;
    ended.iter().try_for_each(|id| release(store, namespace, id))
}

/// What leases hold.
#[derive(Default)]
struct Held {
    /// Objects, each with whether what it refers to is held too.
    nodes: Vec<(Node, bool)>,
    /// References of writes under way.
    ingests: HashSet<String>,
}

fn held(view: &View, namespace: &Namespace) -> Result<Held> {
    let mut leases = std::collections::HashMap::new();
    view.each(kind::LEASE, namespace.as_str(), "", |id, lease: Lease| {
        leases.insert(id.to_owned(), lease.labels.contains_key(FLAT));
    })?;
    let mut held = Held::default();
    view.each(kind::RESOURCE, namespace.as_str(), "", |name, resource: Resource| {
        let lease = name.split('\0').next().unwrap_or_default();
        match (leases.get(lease), Node::leased(&resource)) {
            (Some(flat), Some(node)) => held.nodes.push((node, !flat)),
            (Some(_), None) => _ = held.ingests.insert(resource.id), // the only other type that a lease can be given
            (None, _) => {}
        }
    })?;
    Ok(held)
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

/// Ends a lease with all it holds.
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

/// A digest as a lease's resource.
pub fn content(digest: &Digest) -> (&'static str, String) {
    ("content", digest.to_string())
}

#[cfg(test)]
mod tests;
