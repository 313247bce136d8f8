//! Snapshots' rows as they are written and removed: beside each one that has a parent lies a row that is found by the parent,
//! so that nobody reads all snapshots to learn whether one of them lies on this one.

use super::{Row, name};
use crate::error::Result;
use crate::names::Namespace;
use crate::store::{Rows, kind};

/// Writes a row under its key. What lies beside it is written with it, and only with it.
pub fn put(rows: &mut Rows<'_>, namespace: &Namespace, snapshotter: &str, row: &Row) -> Result<()> {
    let (key, parent) = ends(row);
    if !parent.is_empty() {
        rows.put(kind::CHILD, namespace, &child(snapshotter, parent, key), &())?;
    }
    rows.put(kind::SNAPSHOT, namespace, &name(snapshotter, key), row)
}

/// Removes a row; what it was, if it was there.
pub fn remove(rows: &mut Rows<'_>, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Option<Row>> {
    let Some(row) = rows.get::<Row>(kind::SNAPSHOT, namespace, &name(snapshotter, key))? else { return Ok(None) };
    let parent = ends(&row).1;
    rows.remove(kind::CHILD, namespace.as_str(), &child(snapshotter, parent, key))?;
    rows.remove(kind::SNAPSHOT, namespace.as_str(), &name(snapshotter, key))?;
    Ok(Some(row))
}

pub fn has_children(rows: &Rows<'_>, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<bool> {
    rows.any(kind::CHILD, namespace.as_str(), &child(snapshotter, key, ""))
}

/// Writes what lies beside rows of the first format, which had nothing there.
pub fn index(rows: &mut Rows<'_>, namespace: &Namespace) -> Result<()> {
    for (name, row) in rows.list::<Row>(kind::SNAPSHOT, namespace)? {
        put(rows, namespace, name.split('\0').next().unwrap_or_default(), &row)?;
    }
    Ok(())
}

/// A row's key and its parent's.
fn ends(row: &Row) -> (&str, &str) {
    row.info.as_ref().map_or(("", ""), |info| (&info.name, &info.parent))
}

fn child(snapshotter: &str, parent: &str, key: &str) -> String {
    format!("{snapshotter}\0{parent}\0{key}")
}
