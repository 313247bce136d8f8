//! `tare list`: the containers of a root.
//!
//! Source: runc-list(8).

use super::flags::{Flag, Order, parse, switch, value};
use super::state::Shown;
use super::{Error, Global};
use crate::state::{State, StateDir, ids};

const FLAGS: &[Flag] = &[value(&["format", "f"]), switch(&["quiet", "q"])];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    if global.root_given && !global.root.is_dir() {
        return Err(Error::Refused(format!("reading {}: no such file or directory", global.root.display())));
    }
    let entries: Vec<(StateDir, State)> = ids(&global.root)?
        .iter()
        .filter_map(|id| {
            let entry = StateDir::look(&global.root, id);
            match entry.read() {
                Ok(state) => Some((entry, state)),
                Err(error) => {
                    eprintln!("load container {}: {error}", id.as_str()); // told, and the others are listed
                    None
                }
            }
        })
        .collect();
    let shown: Vec<Shown<'_>> =
        entries.iter().map(|(entry, state)| Shown::of(state, state.status(entry), owner(entry))).collect();
    if parsed.is_set("quiet") {
        shown.iter().for_each(|container| println!("{}", container.id));
        return Ok(0);
    }
    match parsed.value("format").unwrap_or("table") {
        "json" if shown.is_empty() => println!("null"),
        "json" => println!("{}", serde_json::to_string(&shown).expect("only strings are keys")),
        "table" => print_table(&shown),
        _ => return Err(Error::Usage("invalid format option".into())),
    }
    Ok(0)
}

/// The owner of the container's folder, by name; `#uid` if there is none.
fn owner(entry: &StateDir) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let uid = std::fs::metadata(entry.path()).map_or(0, |metadata| metadata.uid());
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

/// Columns at least twelve wide, three spaces apart.
fn print_table(shown: &[Shown<'_>]) {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = shown.iter().map(|c| {
        let bundle = c.bundle.display().to_string();
        [c.id.to_owned(), c.pid.to_string(), c.status.to_owned(), bundle, c.created.clone(), c.owner.clone()]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    for row in &rows {
        let line: String = row.iter().enumerate().map(|(column, text)| format!("{text:<0$}", width(column))).collect();
        println!("{}", line.trim_end());
    }
}
