//! The runtime's options, in each of the forms that daemons send them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost_types::Any;
use serde::{Deserialize, Serialize};
use tare_proto::any;
use tare_proto::containerd::runc::v1 as runc;
use tare_proto::runtimeoptions::v1 as generic;

use crate::error::{Doing as _, Failed};

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";
/// Beside config.json, for `delete` and for whoever looks; containerd's runc shim writes the same.
const FILE: &str = "options.json";

/// TOML's keys are Go's field names (`BinaryName`), the file's are protobuf's (`binary_name`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    #[serde(alias = "NoPivotRoot", skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    #[serde(alias = "NoNewKeyring", skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    #[serde(alias = "ShimCgroup", skip_serializing_if = "is_default")]
    pub shim_cgroup: String,
    /// Who owns the pipes of a container's output.
    #[serde(alias = "IoUid", skip_serializing_if = "is_default")]
    pub io_uid: u32,
    #[serde(alias = "IoGid", skip_serializing_if = "is_default")]
    pub io_gid: u32,
    #[serde(alias = "BinaryName", skip_serializing_if = "is_default")]
    pub binary_name: String,
    #[serde(alias = "Root", skip_serializing_if = "is_default")]
    pub root: PathBuf,
    #[serde(alias = "SystemdCgroup", skip_serializing_if = "is_default")]
    pub systemd_cgroup: bool,
    /// CRIU's own files of a restore.
    #[serde(alias = "CriuWorkPath", skip_serializing_if = "is_default")]
    pub criu_work_path: PathBuf,
    /// Where the pod's shim listens, if the daemon knows that already.
    #[serde(alias = "TaskApiAddress", skip_serializing_if = "is_default")]
    pub task_api_address: String,
    #[serde(alias = "TaskApiVersion", skip_serializing_if = "is_default")]
    pub task_api_version: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, thiserror::Error)]
pub enum Bad {
    #[error("options of type {0} are not known: {RUNC} and {GENERIC} are")]
    Type(String),
    #[error("options of type {name}: {error}")]
    Protobuf { name: String, error: prost::DecodeError },
    #[error("options in TOML: {0}")]
    Toml(#[from] toml::de::Error),
    #[error("options in {path}: {error}")]
    Json { path: String, error: serde_json::Error },
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Options {
    /// Without a type there are none: every field has its default.
    ///
    /// # Errors
    /// The type is not known, or the value is not of its type.
    pub fn from_any(any: &Any) -> Result<Options, Bad> {
        let bad = |error| Bad::Protobuf { name: any.type_url.clone(), error };
        if any.type_url.is_empty() {
            return Ok(Options::default());
        }
        if let Some(options) = any::unpack::<runc::Options>(any, RUNC).map_err(bad)? {
            return Ok(options.into());
        }
        if let Some(options) = any::unpack::<generic::Options>(any, GENERIC).map_err(bad)? {
            return Options::from_toml(&options);
        }
        Err(Bad::Type(any.type_url.clone()))
    }

    fn from_toml(options: &generic::Options) -> Result<Options, Bad> {
        let text = if options.config_path.is_empty() {
            String::from_utf8_lossy(&options.config_body).into_owned()
        } else {
            fs::read_to_string(&options.config_path).doing(|| format!("reading {}", options.config_path))?
        };
        Ok(toml::from_str(&text)?)
    }

    /// What was written into the bundle before the runtime was called; nothing if it did not come so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(bundle: &Path) -> Result<Option<Options>, Bad> {
        let path = bundle.join(FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(|| format!("reading {}", path.display())).map_err(Bad::from),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Bad::Json { path: path.display().to_string(), error }),
        }
    }

    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, bundle: &Path) -> Result<(), Failed> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self).expect("strings, numbers and booleans are JSON");
        fs::write(&path, text).doing(|| format!("writing {}", path.display()))
    }
}

impl From<runc::Options> for Options {
    fn from(options: runc::Options) -> Options {
        Options {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root.into(),
            systemd_cgroup: options.systemd_cgroup,
            criu_work_path: options.criu_work_path.into(),
            task_api_address: options.task_api_address,
            task_api_version: options.task_api_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Options {
        Options { binary_name: "crun".into(), root: "/r".into(), systemd_cgroup: true, ..Options::default() }
    }

    #[test]
    fn both_kinds_of_options_say_the_same() {
        let message = runc::Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            ..runc::Options::default()
        };
        assert_eq!(Options::from_any(&any::pack(RUNC, &message)).unwrap(), sample());
        let body = b"BinaryName = 'crun'\nRoot = '/r'\nSystemdCgroup = true\nSomethingElse = 1\n".to_vec();
        let message = generic::Options { config_body: body, ..generic::Options::default() };
        assert_eq!(Options::from_any(&any::pack(GENERIC, &message)).unwrap(), sample());
        assert_eq!(Options::from_any(&Any::default()).unwrap(), Options::default());
    }

    #[test]
    fn options_survive_in_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::read(dir.path()).unwrap(), None);
        sample().write(dir.path()).unwrap();
        assert_eq!(Options::read(dir.path()).unwrap(), Some(sample()));
    }

    #[test]
    fn an_unknown_type_is_named() {
        let any = Any { type_url: "windows.Options".into(), value: vec![] };
        assert!(Options::from_any(&any).unwrap_err().to_string().starts_with("options of type windows.Options"));
    }
}
