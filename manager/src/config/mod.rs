//! What the daemon is told: built-in values, then the configuration file, then the command line.
//!
//! ```toml
//! version = 3                    # containerd's second version is understood as well
//! root = "/var/lib/tared"        # images, snapshots, the database
//! state = "/run/tared"           # what a reboot may lose
//! imports = ["conf.d/*.toml"]    # further files, read later, which win
//! oom_score = 0                  # of the daemon, for the kernel: proc_pid_oom_score_adj(5)
//! [cgroup]
//! path = ""                      # made and joined at the start; empty: where it was started
//! [grpc]
//! address = "/run/tared/tared.sock"
//! uid = 0
//! gid = 0
//! tcp_address = ""               # HOST:PORT, only with all three files of TLS: clients must have a certificate
//! tcp_tls_ca = ""
//! tcp_tls_cert = ""
//! tcp_tls_key = ""
//! [ttrpc]
//! address = "/run/tared/tared.sock.ttrpc"
//! [debug]
//! address = ""                   # a socket for HTTP: GET /metrics, GET and PUT /log-level
//! level = "info"                 # trace, debug, info, warn, error
//! format = "text"                # or json
//! [metrics]
//! address = ""                   # HOST:PORT for HTTP: GET /metrics or /v1/metrics
//! [cri]                          # see cri/config.rs
//! [runtime]
//! root = ""                      # the runtime's own state: empty, /run/tare, or with another `state` a folder below that
//! [plugins."io.containerd.gc.v1.scheduler"]
//! startup_delay = "100ms"
//! schedule_delay = "0s"
//! [plugins."io.containerd.image-verifier.v1.bindir"]
//! bin_dir = "/opt/containerd/image-verifier/bin"    # programs that may forbid a pull
//! max_verifiers = 10
//! per_verifier_timeout = "10s"
//! [plugins."io.containerd.metadata.v1.bolt"]
//! content_sharing_policy = "shared"   # or isolated: who knows another namespace's digest gets nothing for it
//! [plugins."io.containerd.monitor.container.v1.restart"]
//! interval = "10s"
//! [proxy_plugins.stargz]         # a snapshotter in a program of its own
//! type = "snapshot"
//! address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"
//! platform = ""                  # what it has images for: this machine's if empty
//! exports = {}                   # shown to clients
//! capabilities = []
//! ```
//!
//! The shape is containerd's, whose files may be given: a key that means nothing here is named at the start, and does
//! nothing. A value that is wrong is an error.

mod file;
mod migrate;
mod plugins;
mod proxy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::Error;
pub use plugins::{Plugins, Sharing, Span};
pub use proxy::Proxy;

pub const FILE: &str = "/etc/tared/config.toml";
const STATE: &str = "/run/tared";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub version: i64,
    pub root: PathBuf,
    pub state: PathBuf,
    pub oom_score: i32,
    pub cgroup: Cgroup,
    pub grpc: Grpc,
    pub ttrpc: Ttrpc,
    pub debug: Debug,
    pub metrics: Metrics,
    pub runtime: Runtime,
    pub cri: crate::cri::Config,
    pub plugins: Plugins,
    /// By name, which is what clients call them by.
    pub proxy_plugins: BTreeMap<String, Proxy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grpc {
    pub address: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub tcp_address: String,
    pub tcp_tls_ca: PathBuf,
    pub tcp_tls_cert: PathBuf,
    pub tcp_tls_key: PathBuf,
}

/// The daemon's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    pub path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ttrpc {
    /// Empty: beside the gRPC socket, with `.ttrpc` at its end.
    pub address: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Debug {
    pub address: PathBuf,
    pub level: Level,
    pub format: Format,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    pub address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Unless a client's options name another. Empty: the runtime's own default, or with another `state` than ours a folder
    /// below it, so that two daemons do not meet there.
    pub root: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Trace,
    Debug,
    #[default]
    Info,
    #[serde(alias = "warning")]
    Warn,
    #[serde(alias = "fatal", alias = "panic")]
    Error,
}

/// A configuration, and the keys in its files that mean nothing.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub unknown: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// What the command line sets.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub address: Option<PathBuf>,
    pub level: Option<Level>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            version: migrate::PRESENT,
            root: "/var/lib/tared".into(),
            state: STATE.into(),
            oom_score: 0,
            cgroup: Cgroup::default(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            debug: Debug::default(),
            metrics: Metrics::default(),
            runtime: Runtime::default(),
            cri: crate::cri::Config::default(),
            plugins: Plugins::default(),
            proxy_plugins: BTreeMap::new(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Grpc {
        Grpc {
            address: "/run/tared/tared.sock".into(),
            uid: 0,
            gid: 0,
            tcp_address: String::new(),
            tcp_tls_ca: PathBuf::new(),
            tcp_tls_cert: PathBuf::new(),
            tcp_tls_key: PathBuf::new(),
        }
    }
}

impl Config {
    /// Reads `file`, or the usual one if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or a value in it is wrong.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Loaded, Error> {
        let path = file.unwrap_or(Path::new(FILE));
        let table = if file.is_none() && !path.exists() { Table::new() } else { file::read(path)? };
        let wrong = |error: String| Error::InvalidArgument(format!("reading {}: {error}", path.display()));
        let mut config: Config =
            Value::Table(table.clone()).try_into().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        let understood = Table::try_from(&config).map_err(|error| wrong(error.to_string()))?;
        config.apply(overrides);
        config.check()?;
        Ok(Loaded { config: config.complete(), unknown: file::unknown(&table, &understood) })
    }

    /// As a file that says all of it.
    ///
    /// # Errors
    /// A path is not text.
    pub fn dump(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|error| Error::InvalidArgument(format!("writing the configuration: {error}")))
    }

    /// With nothing left to be derived.
    pub fn complete(mut self) -> Config {
        if self.ttrpc.address.as_os_str().is_empty() {
            let mut address = self.grpc.address.clone().into_os_string();
            address.push(".ttrpc");
            self.ttrpc.address = address.into();
        }
        if self.runtime.root.as_os_str().is_empty() {
            let usual = self.state == Path::new(STATE);
            self.runtime.root = if usual { "/run/tare".into() } else { self.state.join("runtime") };
        }
        self
    }

    fn apply(&mut self, overrides: Overrides) {
        if let Some(root) = overrides.root {
            self.root = root;
        }
        if let Some(state) = overrides.state {
            self.state = state;
        }
        if let Some(address) = overrides.address {
            self.grpc.address = address;
            self.ttrpc.address = PathBuf::new(); // it follows
        }
        if let Some(level) = overrides.level {
            self.debug.level = level;
        }
    }

    fn check(&self) -> Result<(), Error> {
        let ttrpc = Some(&self.ttrpc.address).filter(|address| !address.as_os_str().is_empty());
        let paths = [
            ("root", Some(&self.root)),
            ("state", Some(&self.state)),
            ("grpc.address", Some(&self.grpc.address)),
            ("ttrpc.address", ttrpc),
            ("runtime.root", Some(&self.runtime.root).filter(|root| !root.as_os_str().is_empty())),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(Error::InvalidArgument(format!("{key} = {path:?}: it must be an absolute path")));
            }
        }
        let (grpc, files) = (&self.grpc, [&self.grpc.tcp_tls_ca, &self.grpc.tcp_tls_cert, &self.grpc.tcp_tls_key]);
        if !grpc.tcp_address.is_empty() && files.iter().any(|file| file.as_os_str().is_empty()) {
            return Err(Error::InvalidArgument(format!(
                "grpc.tcp_address = {:?}: it needs grpc.tcp_tls_ca, tcp_tls_cert and tcp_tls_key, since whoever connects is root",
                grpc.tcp_address
            )));
        }
        for (name, proxy) in &self.proxy_plugins {
            proxy.check(name)?;
        }
        if self.root == self.state {
            return Err(Error::InvalidArgument("root and state must be different folders".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(dir: &Path, text: &str) -> Result<Loaded, Error> {
        let file = dir.join("c.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), Overrides::default())
    }

    #[test]
    fn what_is_dumped_reads_back_as_the_same_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default().complete();
        let again = load(dir.path(), &config.dump().unwrap()).unwrap();
        assert_eq!(again.config, config);
        assert_eq!(again.unknown, Vec::<String>::new());
        assert_eq!(config.ttrpc.address, Path::new("/run/tared/tared.sock.ttrpc"));
    }

    #[test]
    fn daemons_with_states_of_their_own_do_not_meet_in_the_runtimes() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = |text: &str| load(dir.path(), text).unwrap().config.runtime.root;
        assert_eq!(runtime(""), Path::new("/run/tare"));
        assert_eq!(runtime("state = '/run/other'"), Path::new("/run/other/runtime"));
        assert_eq!(runtime("state = '/run/other'\n[runtime]\nroot = '/run/own'"), Path::new("/run/own"));
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_ttrpc_socket_follows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "root = '/a'\n[grpc]\naddress = '/b'\n[debug]\nlevel = 'warning'\nformat = 'json'\n")
            .unwrap();
        let overrides =
            Overrides { address: Some("/c/d.sock".into()), level: Some(Level::Debug), ..Overrides::default() };
        let config = Config::load(Some(&file), overrides).unwrap().config;
        assert_eq!((config.root.as_path(), config.state.as_path()), (Path::new("/a"), Path::new("/run/tared")));
        assert_eq!(config.ttrpc.address, Path::new("/c/d.sock.ttrpc"));
        assert_eq!((config.debug.level, config.debug.format), (Level::Debug, Format::Json));
    }

    #[test]
    fn a_file_of_containerds_is_understood_and_what_does_nothing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = "version = 2\nroot = '/r'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
                    [grpc]\naddress = '/s'\nmax_recv_message_size = 1\n\
                    [plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.02\nschedule_delay = '1s'\n\
                    [plugins.'io.containerd.internal.v1.restart']\ninterval = '2s'\n\
                    [plugins.'io.containerd.internal.v1.opt']\npath = '/opt'\n";
        let Loaded { config, mut unknown } = load(dir.path(), text).unwrap();
        assert_eq!((config.version, config.root.as_path()), (3, Path::new("/r")));
        assert_eq!(config.plugins.restart.interval, Span(std::time::Duration::from_secs(2)));
        assert_eq!(config.plugins.scheduler.schedule_delay, Span(std::time::Duration::from_secs(1)));
        unknown.sort();
        let expected = [
            "disabled_plugins",
            "grpc.max_recv_message_size",
            "plugins.\"io.containerd.gc.v1.scheduler\".pause_threshold",
            "plugins.\"io.containerd.internal.v1.opt\"",
        ];
        assert_eq!(unknown, expected);
    }

    #[test]
    fn a_wrong_value_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [
            ("state = 'run'", "state = \"run\""),
            ("[debug]\nlevel = 'loud'", "loud"),
            ("root = '/same'\nstate = '/same'", "different folders"),
            ("[grpc]\ntcp_address = '0.0.0.0:1'", "tcp_tls_ca"),
            ("[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = 'soon'", "\"soon\" is no duration"),
            ("version = 7", "version = 7"),
        ] {
            let error = load(dir.path(), text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(Config::load(Some(&dir.path().join("none")), Overrides::default()).is_err());
    }
}
