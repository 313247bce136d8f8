//! From files to one table: imports read and merged, older forms brought to the present one, keys that mean nothing found.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::migrate;
use crate::error::Error;

/// Reads a file and what it imports; what is read later wins, and tables are joined.
///
/// # Errors
/// A file cannot be read, or is no TOML, or of a version that is not known.
pub fn read(path: &Path) -> Result<Table, Error> {
    let mut seen = Vec::new();
    read_once(path, &mut seen)
}

fn read_once(path: &Path, seen: &mut Vec<PathBuf>) -> Result<Table, Error> {
    let doing = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(doing(), &error))?;
    let wrong = |why: String| Error::InvalidArgument(format!("{}: {why}", doing()));
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    migrate::to_present(&mut table).map_err(wrong)?;
    seen.push(path.to_owned());
    let imports = match table.remove("imports") {
        None => Vec::new(),
        Some(imports) => imports.try_into::<Vec<String>>().map_err(|error| wrong(format!("imports: {error}")))?,
    };
    for pattern in imports {
        let folder = path.parent().unwrap_or(Path::new("/"));
        for import in matching(&folder.join(&pattern))? {
            if !seen.contains(&import) {
                merge(&mut table, read_once(&import, seen)?);
            }
        }
    }
    Ok(table)
}

/// The files that a pattern means, by name. Only its last part may have stars.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::InvalidArgument(format!("import {}: it names no file", pattern.display())));
    };
    if !name.contains('*') {
        return Ok(vec![pattern.to_owned()]);
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("reading {}", folder.display()), &error)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| path.file_name().and_then(|file| file.to_str()).is_some_and(|file| fits(name, file));
    let mut found: Vec<PathBuf> = paths.filter(fits).collect();
    found.sort();
    Ok(found)
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((begin, rest)) => name.strip_prefix(begin).is_some_and(|name| {
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| fits(rest, &name[at..]))
        }),
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => _ = into.insert(key, value),
        }
    }
}

/// The keys of `given` that `understood` does not have: they do nothing.
pub fn unknown(given: &Table, understood: &Table) -> Vec<String> {
    let mut found = Vec::new();
    compare(given, understood, "", &mut found);
    found
}

fn compare(given: &Table, understood: &Table, above: &str, found: &mut Vec<String>) {
    for (key, value) in given {
        let path = if key.contains('.') { format!("{above}\"{key}\"") } else { format!("{above}{key}") };
        match (value, understood.get(key)) {
            (Value::Table(given), Some(Value::Table(understood))) => {
                compare(given, understood, &format!("{path}."), found);
            }
            (_, Some(_)) => {}
            (_, None) => found.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_joined_in_order_each_once_and_from_where_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        write("main.toml", "root = '/main'\nimports = ['conf.d/*.toml', 'main.toml']\n[grpc]\nuid = 1\ngid = 1\n");
        write("conf.d/20.toml", "root = '/twenty'\n[grpc]\ngid = 20\n");
        write("conf.d/10.toml", "root = '/ten'\nstate = '/ten'\n[grpc]\ngid = 10\n");
        write("conf.d/30.toml.off", "root = '/off'\n");
        let table = read(&dir.path().join("main.toml")).unwrap();
        let expected = "version = 3\nroot = '/twenty'\nstate = '/ten'\n[grpc]\nuid = 1\ngid = 20\n";
        assert_eq!(table, expected.parse().unwrap());
        write("main.toml", "imports = ['missing.toml']");
        assert!(read(&dir.path().join("main.toml")).unwrap_err().to_string().contains("missing.toml"));
    }

    #[test]
    fn a_star_stands_for_any_part_of_a_name() {
        for (pattern, name, fit) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.tom", false),
            ("a*b*", "axxbyy", true),
            ("*", "", true),
            ("a", "b", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
