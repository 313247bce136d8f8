//! A bundle: a folder with `config.json`, read and checked. Whatever Tare does not do is refused here, by the name of the
//! field, before anything is made; what the specification does not define is passed over, as it demands.
//!
//! Source: runtime-spec bundle.md, config.md, config-linux.md.

mod hooks;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod sysctl;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Failed, words};
use crate::spec::{self, Spec};

pub use mounts::cleaned;
pub use process::check_process;
pub use sysctl::sysctl_path;

/// Having one proves that every property in it is supported and well formed; not that the host can grant it.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute.
    pub dir: PathBuf,
    pub spec: Spec,
    /// Absolute, without links.
    pub rootfs: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("JSON specification file config.json not found in {}", .0.display())]
    Missing(PathBuf),
    #[error("reading {}: {why}", .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{field}: {why}")]
    Refused { field: String, why: String },
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Names the field that cannot be done, and why.
pub fn refused<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused { field: field.into(), why: why.into() })
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    ///
    /// # Errors
    /// There is no config.json, it is not JSON of the right shape, or it asks for something that Tare does not do.
    pub fn open(dir: &Path) -> Result<Bundle, Error> {
        let unreadable = |path: &Path, error: std::io::Error| Error::Unreadable {
            path: path.to_owned(),
            why: Errno::from_io_error(&error).map_or_else(|| error.to_string(), words),
        };
        let dir = std::fs::canonicalize(dir).map_err(|error| unreadable(dir, error))?;
        let config = dir.join("config.json");
        let text = std::fs::read(&config).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::Missing(dir.clone()),
            _ => unreadable(&config, error),
        })?;
        let mut spec = read(&text).map_err(|why| Error::Unreadable { path: config, why })?;
        check(&spec)?;
        let rootfs = dir.join(spec.root.as_ref().map_or("", |root| &root.path));
        let rootfs = std::fs::canonicalize(&rootfs).map_err(|error| unreadable(&rootfs, error))?;
        for mount in &mut spec.mounts {
            mounts::strip_root(mount, &rootfs);
        }
        Ok(Bundle { dir, spec, rootfs })
    }

    /// The process, which [`check`] has found.
    pub fn process(&self) -> &spec::Process {
        self.spec.process.as_ref().expect("a checked bundle has a process")
    }

    pub fn linux(&self) -> &spec::Linux {
        self.spec.linux.as_ref().expect("a checked bundle has a linux object")
    }

    /// Whether the container is in a user namespace, its own or that which we are in: it has no rights on the host then.
    pub fn in_user_namespace(&self) -> bool {
        self.namespace("user").is_some() || crate::rootless::inside()
    }

    /// The namespace of that kind, if the container gets or joins one.
    pub fn namespace(&self, kind: &str) -> Option<&spec::Namespace> {
        self.linux().namespaces.iter().find(|namespace| namespace.kind == kind)
    }
}

/// Reads config.json.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn read(text: &[u8]) -> Result<Spec, String> {
    let mut spec: Spec = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    spec.linux.get_or_insert_default(); // its absence asks for nothing, like an empty one
    Ok(spec)
}

/// Refuses what is malformed or not supported.
///
/// # Errors
/// The first such field.
pub fn check(spec: &Spec) -> Result<(), Error> {
    let Some(process) = &spec.process else {
        return refused("process", "missing: there is nothing to run");
    };
    let Some(linux) = &spec.linux else {
        return refused("linux", "missing");
    };
    if !spec.oci_version.starts_with("1.") {
        return refused("ociVersion", format!("{:?} is not a version that tare knows: 1.0 to 1.3", spec.oci_version));
    }
    for (name, platform) in
        [("windows", &spec.windows), ("solaris", &spec.solaris), ("vm", &spec.vm), ("zos", &spec.zos)]
    {
        if platform.is_some() {
            return refused(name, "only Linux containers are supported");
        }
    }
    if spec.root.as_ref().is_none_or(|root| root.path.is_empty()) {
        return refused("root.path", "missing");
    }
    check_process(process)?;
    namespaces::check(spec, linux)?;
    mounts::check(&spec.mounts, linux)?;
    linux::check(linux)?;
    sysctl::check(linux)?;
    if let Some(hooks) = &spec.hooks {
        hooks::check(hooks)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"ociVersion":"1.2.0","process":{"args":["true"],"cwd":"/"},"root":{"path":"rootfs"},
        "linux":{"namespaces":[{"type":"mount"},{"type":"uts"},{"type":"network"}]}}"#;

    /// What is said of the good specification with one JSON pointer set to something else.
    fn said(pointer: &str, value: serde_json::Value) -> String {
        let mut json: serde_json::Value = serde_json::from_str(GOOD).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        match check(&read(json.to_string().as_bytes()).unwrap()) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        use serde_json::json;
        for (pointer, value, expected) in [
            ("/process/scheduler", json!({"policy": "X"}), "process.scheduler.policy: \"X\" is not known"),
            ("/linux/intelRdt", json!({}), "linux.intelRdt: not supported yet"),
            ("/windows", json!({}), "windows: only Linux containers are supported"),
            ("/process/args", json!([]), "process.args: empty: there is nothing to run"),
            ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" is not an absolute path"),
            ("/process/env", json!(["A=1", "B"]), "process.env[1]: \"B\" is not NAME=VALUE"),
            (
                "/mounts",
                json!([{"destination": "/proc/self", "type": "tmpfs"}]),
                "mounts[0].destination: /proc/self is inside /proc",
            ),
            (
                "/linux/sysctl",
                json!({"kernel.core_pattern": "x"}),
                "linux.sysctl.kernel.core_pattern: is not in a namespace of its own: it would change the host",
            ),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}), "fine"),
            ("/hostname", json!("box"), "fine"),
            ("/futureProperty", json!(1), "fine"),
        ] {
            assert_eq!(said(pointer, value), expected, "{pointer}");
        }
    }
}
