//! What the shim reads of a bundle's `config.json`: whom it is grouped with, and whether its processes end with its init.
//! The rest is the runtime's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Doing as _, Failed};

/// Annotations that name a group; the first that is there counts. Source: containerd's runc shim.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    annotations: BTreeMap<String, String>,
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error("reading {path}: {error}")]
    Json { path: String, error: serde_json::Error },
}

impl Config {
    /// Reads the bundle's `config.json`; one that is not there says nothing, as for a sandbox.
    ///
    /// # Errors
    /// It cannot be read, or is not JSON of this form.
    pub fn read(bundle: &Path) -> Result<Config, Error> {
        let path = bundle.join("config.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
            other => other.doing(|| format!("reading {}", path.display()))?,
        };
        serde_json::from_slice(&text).map_err(|error| Error::Json { path: path.display().to_string(), error })
    }

    /// The group that this container's shim serves.
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        GROUPS.iter().find_map(|name| self.annotations.get(*name)).map_or(id, String::as_str)
    }

    /// Whether processes of the container can outlive its init, as they can unless it has a PID namespace of its own.
    pub fn outlives_init(&self) -> bool {
        let own = |namespace: &Namespace| namespace.r#type == "pid" && namespace.path.is_empty();
        !self.linux.as_ref().is_some_and(|linux| linux.namespaces.iter().any(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), text).unwrap();
        Config::read(dir.path()).unwrap()
    }

    #[test]
    fn a_pod_is_found_by_its_annotation_and_a_lone_container_by_its_id() {
        assert_eq!(config("{}").group("one"), "one");
        assert_eq!(config(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#).group("one"), "pod");
        let both = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#;
        assert_eq!(config(both).group("one"), "g");
        assert_eq!(Config::read(Path::new("/nonexistent")).unwrap().group("one"), "one");
    }

    #[test]
    fn only_a_pid_namespace_of_its_own_ends_all_with_init() {
        assert!(!config(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#).outlives_init());
        assert!(config(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#).outlives_init());
        assert!(config(r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#).outlives_init());
    }
}
