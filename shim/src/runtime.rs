//! The runtime, called as containerd's own shim calls runc: by argv, a pid file, a log file and an exit code.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tare_proto::containerd::runc::v1::Options;

/// Which binary is called, and what comes before each verb.
#[derive(Debug, Clone)]
pub struct Runtime {
    binary: String,
    root: String,
    systemd_cgroup: bool,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
}

/// Where the options are kept for `delete`, which gets none.
const KEPT: &str = "runtime.json";

impl Runtime {
    pub fn new(options: &Options, namespace: &str) -> Runtime {
        let named = Some(options.binary_name.clone()).filter(|name| !name.is_empty());
        let root = if options.root.is_empty() { "/run/containerd/tare" } else { &options.root };
        Runtime {
            binary: named.unwrap_or_else(default_binary),
            root: format!("{root}/{namespace}"),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        }
    }

    /// The runtime that made the container of a bundle, as it was written down before.
    pub fn of_bundle(bundle: &Path, namespace: &str) -> Runtime {
        let kept =
            fs::read(bundle.join(KEPT)).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let mut runtime = Runtime::new(&Options::default(), namespace);
        if let Some(kept) = kept {
            if let Some(binary) = kept["binary"].as_str() {
                runtime.binary = binary.into();
            }
            if let Some(root) = kept["root"].as_str() {
                runtime.root = root.into();
            }
            runtime.systemd_cgroup = kept["systemdCgroup"].as_bool().unwrap_or(false);
        }
        runtime
    }

    /// Writes down, in the bundle, what [`Runtime::of_bundle`] reads.
    ///
    /// # Errors
    /// The bundle cannot be written.
    pub fn keep(&self, bundle: &Path) -> std::io::Result<()> {
        let kept = serde_json::json!({"binary": self.binary, "root": self.root, "systemdCgroup": self.systemd_cgroup});
        fs::write(bundle.join(KEPT), kept.to_string())
    }

    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// A verb with its arguments, in the bundle.
    pub fn command(&self, bundle: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--root", &self.root, "--log"]).arg(log(bundle)).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(args).env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if bundle.is_dir() {
            command.current_dir(bundle);
        }
        command
    }

    /// The last error that the runtime has logged.
    pub fn last_error(&self, bundle: &Path) -> Option<String> {
        let lines = BufReader::new(fs::File::open(log(bundle)).ok()?).lines().map_while(Result::ok);
        let errors = lines.filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line).ok()?;
            (line["level"] == "error").then(|| line["msg"].as_str().unwrap_or_default().to_owned())
        });
        errors.last()
    }
}

fn log(bundle: &Path) -> PathBuf {
    bundle.join("log.json")
}

/// `tare` beside this binary, else wherever PATH has it.
fn default_binary() -> String {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("tare")).filter(|path| path.is_file());
    beside.map_or_else(|| "tare".into(), |path| path.to_string_lossy().into_owned())
}
