//! `oci-hook`: runs a program as an OCI hook, with what is known of the container put into its arguments and environment.
//!
//! Clients write `{{id}}`, `{{bundle}}`, `{{rootfs}}`, `{{pid}}`, `{{status}}` and `{{annotation "KEY"}}` where the runtime's
//! state on standard input has the value: so any program can be a hook without reading JSON.
//!
//! Source: containerd cmd/containerd/command/oci-hook.go; runtime-spec runtime.md, "State".

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{Doing as _, Error, Result};

/// A state is an id, a few paths and annotations.
const LONGEST: u64 = 16 << 20;

/// The runtime's state, as far as a hook can ask for it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Spec {
    root: Root,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

/// What the words stand for.
struct Values {
    state: State,
    rootfs: PathBuf,
}

/// Becomes the program that `words` name.
///
/// # Errors
/// The state, the bundle's config.json or a word cannot be read, or the program cannot be run.
pub fn run(words: &[String]) -> Result<Infallible> {
    let mut text = Vec::new();
    io::stdin().take(LONGEST).read_to_end(&mut text).doing(|| "reading the container's state".into())?;
    let values = Values::read(&text)?;
    let words: Vec<String> = words.iter().map(|word| values.fill(word)).collect::<Result<_>>()?;
    let [program, arguments @ ..] = words.as_slice() else {
        return Err(Error::InvalidArgument("oci-hook needs a program".into()));
    };
    let environment = std::env::vars_os().map(|(name, value)| Ok((name, values.fill_os(value)?)));
    let environment: Vec<(OsString, OsString)> = environment.collect::<Result<_>>()?;
    Err(Error::io(
        format!("running {program}"),
        &Command::new(program).args(arguments).env_clear().envs(environment).exec(),
    ))
}

impl Values {
    fn read(text: &[u8]) -> Result<Values> {
        let wrong = |what: &str, error: serde_json::Error| Error::InvalidArgument(format!("reading {what}: {error}"));
        let state: State = serde_json::from_slice(text).map_err(|error| wrong("the container's state", error))?;
        let config = state.bundle.join("config.json");
        let text = std::fs::read(&config).doing(|| format!("reading {}", config.display()))?;
        let spec: Spec = serde_json::from_slice(&text).map_err(|error| wrong(&config.display().to_string(), error))?;
        let rootfs = state.bundle.join(spec.root.path);
        Ok(Values { state, rootfs })
    }

    /// Environment that is not text has no words in it.
    fn fill_os(&self, value: OsString) -> Result<OsString> {
        match value.to_str() {
            Some(text) if text.contains("{{") => Ok(self.fill(text)?.into()),
            _ => Ok(value),
        }
    }

    fn fill(&self, mut text: &str) -> Result<String> {
        let mut filled = String::new();
        while let Some((before, rest)) = text.split_once("{{") {
            let (word, after) = rest
                .split_once("}}")
                .ok_or_else(|| Error::InvalidArgument(format!("{{{{{rest}: there is no }}}} after it")))?;
            filled.push_str(before);
            filled.push_str(&self.value(word.trim())?);
            text = after;
        }
        filled.push_str(text);
        Ok(filled)
    }

    fn value(&self, word: &str) -> Result<String> {
        let path = |path: &Path| OsStr::to_string_lossy(path.as_os_str()).into_owned();
        Ok(match word {
            "id" => self.state.id.clone(),
            "status" => self.state.status.clone(),
            "pid" => self.state.pid.to_string(),
            "bundle" => path(&self.state.bundle),
            "rootfs" => path(&self.rootfs),
            _ => {
                let key = word.strip_prefix("annotation").and_then(quoted).ok_or_else(|| {
                    let known = "id, bundle, rootfs, pid, status and annotation \"KEY\" are known";
                    Error::InvalidArgument(format!("{{{{{word}}}}}: {known}"))
                })?;
                self.state.annotations.get(key).cloned().unwrap_or_default()
            }
        })
    }
}

/// What stands between Go's quotes.
fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    let mark = text.chars().next().filter(|mark| matches!(mark, '"' | '`'))?;
    text.strip_prefix(mark)?.strip_suffix(mark).filter(|key| !key.contains([mark, '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> (tempfile::TempDir, Values) {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), r#"{"root": {"path": "rootfs"}, "hooks": {}}"#).unwrap();
        let state = serde_json::json!({
            "ociVersion": "1.0.2", "id": "one", "status": "created", "pid": 7, "bundle": bundle.path(),
            "annotations": {"a.b/c": "value"},
        });
        let values = Values::read(state.to_string().as_bytes()).unwrap();
        (bundle, values)
    }

    #[test]
    fn each_word_is_replaced_by_what_the_runtime_says() {
        let (bundle, values) = values();
        let bundle = bundle.path().display();
        for (text, expected) in [
            ("plain", "plain".to_owned()),
            ("{{id}}/{{ status }}", "one/created".to_owned()),
            ("--pid={{pid}}.", "--pid=7.".to_owned()),
            ("{{bundle}} {{rootfs}}", format!("{bundle} {bundle}/rootfs")),
            ("{{annotation \"a.b/c\"}}{{annotation `none`}}", "value".to_owned()),
        ] {
            assert_eq!(values.fill(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_word_that_nothing_stands_for_is_named() {
        let (_bundle, values) = values();
        for text in ["{{user}}", "{{annotation}}", "{{annotation a}}", "{{}}"] {
            let error = values.fill(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: id, bundle, rootfs")), "{error}");
        }
        assert_eq!(values.fill("a {{id").unwrap_err().to_string(), "{{id: there is no }} after it: invalid argument");
    }
}
