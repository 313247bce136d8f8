//! A network as its file says: a list of plugins that are run one after another.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::attachment::name;
use super::firewall;
use super::settings::Settings;
use crate::error::{Error, Result};

/// Versions of the protocol, oldest first. Source: SPEC.md, "Released versions".
const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a plugin, and the runtime, must know to be asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    pub const CHECK: Version = Version(4);
    pub const STATUS_AND_GC: Version = Version(6);

    fn parse(text: &str) -> Option<Version> {
        VERSIONS.iter().position(|version| *version == text).map(Version)
    }

    pub fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// A network: having one proves that its name and its plugins' are no paths, and its version is one we speak.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    pub name: String,
    pub version: Version,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
    /// As it was read, to be kept beside what is added by it.
    pub source: Value,
}

/// One plugin of a list, with the object that it is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    pub program: String,
    pub object: Map<String, Value>,
}

impl Plugin {
    /// What it says it can do at a pod's wish.
    pub fn can(&self, capability: &str) -> bool {
        self.object.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

impl List {
    /// Reads a list, or a plugin's object alone, which is a list of one.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the field.
    pub fn parse(source: Value) -> Result<List> {
        let wrong = |field: &str, why: &str| Error::InvalidArgument(format!("{field}: {why}"));
        let list = source.as_object().ok_or_else(|| wrong("the network", "is not an object"))?;
        let text = |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
        let network = text(list, "name").ok_or_else(|| wrong("name", "is missing"))?;
        name("name", &network)?;
        let plugins = match list.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err(wrong("plugins", "is not a list")),
            None => vec![source.clone()],
        };
        let plugins = plugins.into_iter().enumerate().map(|(n, plugin)| {
            let field = format!("plugins[{n}].type");
            let Value::Object(object) = plugin else { return Err(wrong(&field, "is missing")) };
            let program = text(&object, "type").ok_or_else(|| wrong(&field, "is missing"))?;
            name(&field, &program)?;
            Ok(Plugin { program, object })
        });
        let plugins = plugins.collect::<Result<Vec<Plugin>>>()?;
        if plugins.is_empty() {
            return Err(wrong("plugins", "is empty"));
        }
        Ok(List {
            name: network,
            version: version(list)?,
            disable_check: flag(list, "disableCheck")?,
            disable_gc: flag(list, "disableGC")?,
            plugins,
            source,
        })
    }
}

/// The newest version that both sides know.
fn version(list: &Map<String, Value>) -> Result<Version> {
    let said = list.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    let others = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    others
        .chain([said])
        .filter_map(Version::parse)
        .max()
        .ok_or_else(|| Error::InvalidArgument(format!("cniVersion: {said:?} is none of {}", VERSIONS.join(", "))))
}

/// A flag, which people also write as text.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(Error::InvalidArgument(format!("{key}: {other} is neither true nor false"))),
    }
}

/// The networks that a pod gets now, the first one as `eth0`.
///
/// # Errors
/// `FailedPrecondition`: there is none; or a file that counts cannot be read.
pub fn load(settings: &Settings) -> Result<Vec<List>> {
    let mut lists: Vec<List> = Vec::new();
    for file in files(&settings.conf_dir)? {
        if settings.max_conf_num > 0 && lists.len() == settings.max_conf_num {
            break;
        }
        let wrong = |why: String| Error::FailedPrecondition(format!("network configuration {}: {why}", file.display()));
        let bytes = fs::read(&file).map_err(|error| wrong(error.kind().to_string()))?;
        let source: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let fitted = if settings.ours && !firewall::is_there() { firewall::without(source) } else { source };
        let list = List::parse(fitted).map_err(|error| wrong(error.to_string()))?;
        if lists.iter().any(|other| other.name == list.name) {
            return Err(wrong(format!("name: {:?} is an earlier file's, too", list.name)));
        }
        lists.push(list);
    }
    match (lists.is_empty(), settings.built_in) {
        (true, true) => Ok(vec![built_in(settings)?]),
        (true, false) => {
            // In the words that people who set up a node look for.
            let folder = settings.conf_dir.display();
            Err(Error::FailedPrecondition(format!("cni plugin not initialized: no network configuration in {folder}")))
        }
        (false, _) => Ok(lists),
    }
}

/// Whether pods get the built-in network, because nobody has configured one.
pub fn is_built_in(settings: &Settings) -> bool {
    settings.built_in && files(&settings.conf_dir).is_ok_and(|files| files.is_empty())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: &io::Error| Error::io(format!("reading {}", folder.display()), error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(&error))?.path();
        let kind = path.extension().and_then(OsStr::to_str);
        if matches!(kind, Some("conflist" | "conf" | "json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A bridge with host ports, for a node on which nobody has configured anything.
fn built_in(settings: &Settings) -> Result<List> {
    let ranges: Vec<Value> = settings.built_in_subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let routes = settings.built_in_subnets.iter().map(|subnet| match subnet.contains(':') {
        true => json!({ "dst": "::/0" }),
        false => json!({ "dst": "0.0.0.0/0" }),
    });
    let list = json!({
        "cniVersion": "1.0.0", // what the plugins of Debian 12 speak
        "name": "tare",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "tare0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes.collect::<Vec<Value>>() },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    List::parse(if firewall::is_there() { list } else { firewall::without(list) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_named() {
        for (source, word) in [
            (json!([]), "not an object"),
            (json!({"plugins": []}), "name: is missing"),
            (json!({"name": "a/b", "type": "bridge"}), "name \"a/b\""),
            (json!({"name": "a", "plugins": []}), "plugins: is empty"),
            (json!({"name": "a", "plugins": 1}), "plugins: is not a list"),
            (json!({"name": "a", "plugins": [{"type": "../../bin/sh"}]}), "plugins[0].type"),
            (json!({"name": "a", "plugins": [{"type": "x"}, {}]}), "plugins[1].type"),
            (json!({"name": "a", "type": "x", "cniVersion": "2.0.0"}), "cniVersion: \"2.0.0\""),
            (json!({"name": "a", "type": "x", "disableCheck": 1}), "disableCheck: 1"),
        ] {
            let error = List::parse(source.clone()).unwrap_err().to_string();
            assert!(error.contains(word), "{source}: {error}");
        }
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let of = |versions: Value| {
            let list = json!({"name": "a", "type": "x", "cniVersion": "0.4.0", "cniVersions": versions});
            List::parse(list).unwrap().version.as_str()
        };
        assert_eq!(of(json!(["0.3.1", "1.1.0", "9.0.0"])), "1.1.0");
        assert_eq!(of(Value::Null), "0.4.0");
    }

    #[test]
    fn files_count_by_name_and_one_network_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings { conf_dir: dir.path().join("net.d"), built_in: false, ..Settings::default() };
        assert!(load(&settings).unwrap_err().to_string().contains("no network configuration"));
        settings.built_in = true;
        assert!(is_built_in(&settings));
        assert_eq!(load(&settings).unwrap()[0].name, "tare");

        fs::create_dir(&settings.conf_dir).unwrap();
        let write = |file: &str, text: &str| fs::write(settings.conf_dir.join(file), text).unwrap();
        write("20-b.conf", r#"{"name": "b", "type": "x"}"#);
        write("10-a.conflist", r#"{"name": "a", "plugins": [{"type": "x"}]}"#);
        write("00-readme.txt", "not read");
        write("30-bad.json", "{");
        let names = |settings: &Settings| {
            load(settings).map(|lists| lists.into_iter().map(|list| list.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&settings).unwrap(), ["a"]);
        settings.max_conf_num = 2;
        assert_eq!(names(&settings).unwrap(), ["a", "b"]);
        settings.max_conf_num = 0;
        assert!(names(&settings).unwrap_err().to_string().contains("30-bad.json"));
    }
}
