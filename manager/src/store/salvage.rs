//! A database file in which pages were damaged: the rows that are whole go into a new one.
//!
//! A page that cannot be read hides what lies on it; what lies before it is reached from the beginning, and what lies behind
//! it from the end. Of the rows that are reached, those count that are as they were written, by their sums.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database, ReadableDatabase as _, ReadableTable as _};

use super::{ROWS, format, kind, sync_folder};
use crate::error::{Doing as _, Error, Result};

/// What was saved.
#[derive(Debug)]
pub struct Saved {
    /// Where the damaged file lies now.
    pub damaged: PathBuf,
    pub rows: usize,
    /// Rows that were reached and are not as they were written, by their keys.
    pub lost: Vec<String>,
}

type Whole = BTreeMap<String, Vec<u8>>;

/// Puts a new database in the place of a damaged one, with what is whole; nobody may have it open.
///
/// # Errors
/// Nothing in it can be read, or the disk is full; then everything is as it was.
pub fn salvage(path: &Path) -> Result<Saved> {
    let (rows, lost) = read(path)?;
    let aside = path.with_extension("saved");
    let doing = || format!("saving the database {}", path.display());
    if aside.exists() {
        std::fs::remove_file(&aside).doing(doing)?;
    }
    write(&aside, &rows)?;
    let damaged = path.with_extension("damaged");
    std::fs::rename(path, &damaged).doing(doing)?;
    std::fs::rename(&aside, path).doing(doing)?;
    sync_folder(path).doing(doing)?;
    Ok(Saved { damaged, rows: rows.len(), lost })
}

/// All rows that are reached: those that are whole, and the names of the others.
fn read(path: &Path) -> Result<(Whole, Vec<String>)> {
    let doing = || format!("reading the damaged database {}", path.display());
    // redb panics where a page makes no sense: it believes its own pages unless it is told to check them.
    let guarded = |work: &mut dyn FnMut() -> std::result::Result<(), redb::Error>| {
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(redb::Error::Corrupted("a page makes no sense".into())))
    };
    let mut opened = None;
    let answer = guarded(&mut || {
        // As a reader beside a writer: that needs none of what redb keeps for writing, and changes nothing.
        let mut builder = Database::builder();
        builder.set_cache_size(super::CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
        let database = builder.open_read_only(path)?;
        opened = Some(database.begin_read()?.open_table(ROWS)?);
        Ok(())
    });
    let table = match (answer, opened) {
        (Ok(()), Some(table)) => table,
        (answer, _) => {
            let why = answer.err().map_or_else(String::new, |error| error.to_string());
            return Err(Error::Unknown(format!("{}: nothing in it can be read: {why}", doing())));
        }
    };
    let (mut whole, mut lost) = (Whole::new(), Vec::new());
    for backwards in [false, true] {
        let outcome = guarded(&mut || {
            let mut rows = table.iter()?;
            loop {
                let Some(row) = (if backwards { rows.next_back() } else { rows.next() }) else { return Ok(()) };
                let (key, value) = row?;
                let (key, value) = (key.value().to_owned(), value.value().to_vec());
                if key == format::VERSION_KEY || format::is_whole(&key, &value) {
                    whole.insert(key, value);
                } else if !lost.contains(&key) {
                    lost.push(key);
                }
            }
        });
        if outcome.is_ok() {
            break; // nothing was hidden
        }
    }
    Ok((whole, lost))
}

fn write(path: &Path, rows: &Whole) -> Result<()> {
    let database = super::create(path)?;
    let failed = |error: redb::Error| Error::Unknown(format!("writing the database {}: {error}", path.display()));
    let copy = || -> std::result::Result<(), redb::Error> {
        let change = database.begin_write()?;
        {
            let mut table = change.open_table(ROWS)?;
            // What lies beside snapshots is made anew, for those that are left.
            let beside = format!("{}\0", kind::CHILD);
            for (key, value) in rows.iter().filter(|(key, _)| !key.starts_with(&beside)) {
                table.insert(key.as_str(), value.as_slice())?;
            }
        }
        Ok(change.commit()?)
    };
    copy().map_err(failed)?;
    drop(database);
    super::Store::open(path)?.change(format::index)
}
