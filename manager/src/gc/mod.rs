//! The collector: removes what nothing reaches.
//!
//! Roots are images, containers, what leases hold, and whatever has a label `containerd.io/gc.root`. From there it follows
//! targets, parents and the labels `containerd.io/gc.ref.…`; a `gc.bref.…` label keeps its object for as long as the one
//! it names. What has expired, by its label, is no root: a lease then ends, and an image goes unless something names it.
//!
//! Rows are marked and removed in one change, so that nobody can name a row between the two. Files and folders that have
//! no row any more go afterwards, while others work.
//!
//! Source: containerd core/metadata/gc.go, docs/garbage-collection.md.

mod expiry;
mod graph;

use std::collections::HashSet;

use tare_proto::containerd::services::leases::v1::{Lease, Resource};

use crate::content::Content;
use crate::error::Result;
use crate::names::{Digest, Namespace};
use crate::snapshot::Snapshots;
use crate::store::{Rows, Store, kind};
use expiry::expired;
use graph::{Graph, Node};

/// A lease with this label holds what it lists and not what that refers to.
const FLAT: &str = "containerd.io/gc.flat";

/// Removes, in all namespaces, rows that nothing reaches, then files and folders that no row names.
///
/// # Errors
/// The database is damaged, or a file cannot be removed.
pub fn collect(store: &Store, content: &Content, snapshots: &Snapshots) -> Result<()> {
    let mut ingests = HashSet::new();
    for namespace in store.namespaces()? {
        let held = store.change(|rows| collect_namespace(rows, &namespace))?;
        ingests.extend(held.into_iter().map(|reference| (namespace.clone(), reference)));
    }
    content.sweep(&ingests)?;
    snapshots.sweep()
}

/// Gives the references of unfinished writes that leases hold.
fn collect_namespace(rows: &mut Rows<'_>, namespace: &Namespace) -> Result<HashSet<String>> {
    end_leases(rows, namespace)?;
    let graph = Graph::read(rows, namespace)?;
    let held = held(rows, namespace)?;
    for node in graph.unreached(held.nodes) {
        match node {
            Node::Content(name) => rows.remove(kind::BLOB, namespace.as_str(), &name)?,
            Node::Snapshot(name) => rows.remove(kind::SNAPSHOT, namespace.as_str(), &name)?,
            Node::Image(name) => rows.remove(kind::IMAGE, namespace.as_str(), &name)?,
            Node::Container(_) => continue, // all are roots
        };
    }
    Ok(held.ingests)
}

/// Ends leases that have expired, such as one of a client that was killed.
fn end_leases(rows: &mut Rows<'_>, namespace: &Namespace) -> Result<()> {
    for (id, lease) in rows.list::<Lease>(kind::LEASE, namespace)? {
        if expired(&lease.labels) {
            end(rows, namespace, &id)?;
        }
    }
    Ok(())
}

/// What leases hold.
#[derive(Default)]
struct Held {
    /// Objects, each with whether what it refers to is held too.
    nodes: Vec<(Node, bool)>,
    /// References of writes under way.
    ingests: HashSet<String>,
}

fn held(rows: &Rows<'_>, namespace: &Namespace) -> Result<Held> {
    let mut held = Held::default();
    for (name, Resource { id, r#type }) in rows.list::<Resource>(kind::RESOURCE, namespace)? {
        let lease = name.split('\0').next().unwrap_or_default();
        let Some(lease) = rows.get::<Lease>(kind::LEASE, namespace, lease)? else { continue };
        let node = match r#type.split_once('/') {
            None if r#type == "content" => Node::Content(id),
            None if r#type == "images" => Node::Image(id),
            Some(("snapshots", snapshotter)) => Node::snapshot(snapshotter, &id),
            _ => {
                held.ingests.insert(id); // the only other type that a lease can be given
                continue;
            }
        };
        held.nodes.push((node, !lease.labels.contains_key(FLAT)));
    }
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
    store.change(|rows| end(rows, namespace, lease))
}

fn end(rows: &mut Rows<'_>, namespace: &Namespace, lease: &str) -> Result<()> {
    for name in rows.names(kind::RESOURCE, namespace.as_str(), &format!("{lease}\0"))? {
        rows.remove(kind::RESOURCE, namespace.as_str(), &name)?;
    }
    rows.remove(kind::LEASE, namespace.as_str(), lease).map(|_| ())
}

/// A digest as a lease's resource.
pub fn content(digest: &Digest) -> (&'static str, String) {
    ("content", digest.to_string())
}

#[cfg(test)]
mod tests;
