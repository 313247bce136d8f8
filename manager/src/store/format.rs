//! How rows lie in the table.
//!
//! ```text
//! key      kind NUL namespace NUL name
//! value    eight bytes of SHA-256 over key NUL message, then the message
//! version  the version of this format, without a sum; a newer one is refused, an older one made ours in one change
//! ```
//!
//! The sums are looked at when a damaged file is saved, row by row; otherwise redb's own sums are enough.
//!
//! | version | what it lacked |
//! |---|---|
//! | 1 | the sums, and the rows of [`kind::CHILD`] |

use prost::Message;
use redb::ReadableTable as _;
use sha2::{Digest as _, Sha256};

use super::{Rows, kind};
use crate::error::{Error, Result};
use crate::names::Namespace;
use crate::snapshot;

const VERSION: &str = "2";
pub const VERSION_KEY: &str = "version";
const SUM: usize = 8;

pub fn key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}\0{namespace}\0{name}")
}

fn sum(key: &str, message: &[u8]) -> [u8; SUM] {
    let hash = Sha256::new().chain_update(key).chain_update([0]).chain_update(message).finalize();
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hash[..SUM]);
    sum
}

/// A message as its row's value.
pub fn sealed(key: &str, message: &[u8]) -> Vec<u8> {
    [&sum(key, message), message].concat()
}

/// Whether a row is as it was written.
pub fn is_whole(key: &str, value: &[u8]) -> bool {
    match value.split_first_chunk::<SUM>() {
        Some((found, message)) => *found == sum(key, message),
        None => false,
    }
}

/// The message in a row's value.
pub fn decode<M: Message + Default>(value: &[u8]) -> Result<M> {
    let unreadable = |why: &dyn std::fmt::Display| Error::Unknown(format!("the database: a row cannot be read: {why}"));
    let message = value.get(SUM..).ok_or_else(|| unreadable(&"it is too short"))?;
    M::decode(message).map_err(|error| unreadable(&error))
}

/// Makes a database ours: a new one says so, an older one is brought to this version.
pub fn settle(rows: &mut Rows<'_>) -> Result<()> {
    match rows.bytes(VERSION_KEY)? {
        None => {}
        Some(found) if found == VERSION.as_bytes() => return Ok(()),
        Some(found) if found == b"1" => from_first(rows)?,
        Some(found) => {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(Error::FailedPrecondition(format!(
                "the database has format {found}, this program knows {VERSION}: use a newer one"
            )));
        }
    }
    rows.put_bytes(VERSION_KEY, VERSION.as_bytes())
}

fn from_first(rows: &mut Rows<'_>) -> Result<()> {
    let mut all = Vec::new();
    for row in rows.table.iter().map_err(|error| rows.health.failed(error))? {
        let (key, value) = row.map_err(|error| rows.health.failed(error))?;
        if key.value() != VERSION_KEY {
            all.push((key.value().to_owned(), sealed(key.value(), value.value())));
        }
    }
    for (key, value) in &all {
        rows.put_bytes(key, value)?;
    }
    index(rows)
}

/// Writes anew what lies beside the snapshots' rows.
pub fn index(rows: &mut Rows<'_>) -> Result<()> {
    for namespace in rows.names(kind::NAMESPACE, "", "")? {
        snapshot::rows::index(rows, &Namespace::parse(&namespace)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{OVERLAY, Row, Snapshots};
    use crate::store::Store;
    use tare_proto::containerd::services::images::v1::Image;
    use tare_proto::containerd::services::snapshots::v1::{Info, Kind};

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path).unwrap();
        store.change(|rows| rows.put_bytes(VERSION_KEY, b"3")).unwrap();
        drop(store);
        let Err(Error::FailedPrecondition(said)) = Store::open(&path) else { panic!() };
        assert_eq!(said, "the database has format 3, this program knows 2: use a newer one");
    }

    #[test]
    fn the_first_format_becomes_ours_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let ns = Namespace::parse("n").unwrap();
        let layer = |name: &str, parent: &str, number| {
            let info =
                Info { name: name.into(), parent: parent.into(), kind: Kind::Committed.into(), ..Info::default() };
            Row { info: Some(info), number, ..Row::default() }
        };
        let first = Store::open(&path).unwrap();
        first
            .change(|rows| {
                // As the first release wrote it.
                rows.put_bytes(VERSION_KEY, b"1")?;
                rows.put_bytes(&key(kind::NAMESPACE, "", "n"), b"")?;
                let image = Image { name: "i".into(), ..Image::default() };
                rows.put_bytes(&key(kind::IMAGE, "n", "i"), &image.encode_to_vec())?;
                for (name, parent, number) in [("base", "", 1), ("top", "base", 2)] {
                    let name = snapshot::name(OVERLAY, name);
                    let row = layer(name.rsplit('\0').next().unwrap(), parent, number);
                    rows.put_bytes(&key(kind::SNAPSHOT, "n", &name), &row.encode_to_vec())?;
                }
                Ok(())
            })
            .unwrap();
        drop(first);
        for number in ["1", "2"] {
            std::fs::create_dir_all(dir.path().join("snapshots/overlayfs").join(number).join("fs")).unwrap();
        }
        for opened in ["migrated", "ours"] {
            let store = Store::open(&path).unwrap();
            assert_eq!(store.get::<Image>(kind::IMAGE, &ns, "i").unwrap().unwrap().name, "i", "{opened}");
            let snapshots = Snapshots::open(dir.path(), store.clone()).unwrap();
            assert_eq!(snapshots.list(&ns, OVERLAY).unwrap().len(), 2, "{opened}");
            let refused = snapshots.remove(&ns, OVERLAY, "base").unwrap_err();
            assert_eq!(refused, Error::FailedPrecondition("cannot remove snapshot with child".into()));
        }
        let store = Store::open(&path).unwrap();
        let snapshots = Snapshots::open(dir.path(), store).unwrap();
        snapshots.remove(&ns, OVERLAY, "top").unwrap();
        snapshots.remove(&ns, OVERLAY, "base").unwrap();
    }
}
