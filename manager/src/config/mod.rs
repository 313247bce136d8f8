//! What the daemon is told: built-in values, then the configuration file, then the command line.
//!
//! ```toml
//! root = "/var/lib/tared"        # images, snapshots, the database
//! state = "/run/tared"           # what a reboot may lose
//! [grpc]
//! address = "/run/tared/tared.sock"
//! uid = 0
//! gid = 0
//! [ttrpc]
//! address = "/run/tared/tared.sock.ttrpc"
//! [debug]
//! level = "info"                 # trace, debug, info, warn, error
//! format = "text"                # or json
//! [cri]                          # see cri/config.rs
//! [runtime]
//! root = "/run/tare"             # the runtime's own state, unless a client's options name another
//! ```
//!
//! A key that is not known is an error: a setting that does nothing is worse than a daemon that does not start.

mod plugins;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use plugins::{Plugins, Span};

pub const FILE: &str = "/etc/tared/config.toml";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub grpc: Grpc,
    pub ttrpc: Ttrpc,
    pub debug: Debug,
    pub runtime: Runtime,
    pub cri: crate::cri::Config,
    pub plugins: Plugins,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    pub address: PathBuf,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ttrpc {
    /// Empty: beside the gRPC socket, with `.ttrpc` at its end.
    pub address: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debug {
    pub level: Level,
    pub format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    pub root: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Trace,
    Debug,
    #[default]
    Info,
    Warn,
    Error,
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
            root: "/var/lib/tared".into(),
            state: "/run/tared".into(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            debug: Debug::default(),
            runtime: Runtime::default(),
            cri: crate::cri::Config::default(),
            plugins: Plugins::default(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Grpc {
        Grpc { address: "/run/tared/tared.sock".into(), uid: 0, gid: 0 }
    }
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime { root: "/run/tare".into() }
    }
}

impl Config {
    /// Reads `file`, or the usual one if there is one.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown, or a path is not absolute.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Config, Error> {
        let path = file.unwrap_or(Path::new(FILE));
        let mut config = match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text)
                .map_err(|error| Error::InvalidArgument(format!("reading {}: {error}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => Config::default(),
            Err(error) => return Err(Error::io(format!("reading {}", path.display()), &error)),
        };
        config.apply(overrides);
        config.check()?;
        Ok(config)
    }

    /// As a file that says all of it.
    ///
    /// # Errors
    /// A path is not text.
    pub fn dump(&self) -> Result<String, Error> {
        toml::to_string(&self.clone().complete())
            .map_err(|error| Error::InvalidArgument(format!("writing the configuration: {error}")))
    }

    /// With nothing left to be derived.
    pub fn complete(mut self) -> Config {
        if self.ttrpc.address.as_os_str().is_empty() {
            let mut address = self.grpc.address.clone().into_os_string();
            address.push(".ttrpc");
            self.ttrpc.address = address.into();
        }
        self
    }

    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
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
            ("runtime.root", Some(&self.runtime.root)),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(Error::InvalidArgument(format!("{key} = {path:?}: it must be an absolute path")));
            }
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

    #[test]
    fn what_is_dumped_reads_back_as_the_same_configuration() {
        let config = Config::default().complete();
        assert_eq!(Config::parse(&config.dump().unwrap()).unwrap(), config);
        assert_eq!(config.ttrpc.address, Path::new("/run/tared/tared.sock.ttrpc"));
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_ttrpc_socket_follows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "root = '/a'\n[grpc]\naddress = '/b'\n[debug]\nlevel = 'warn'\nformat = 'json'\n")
            .unwrap();
        let overrides =
            Overrides { address: Some("/c/d.sock".into()), level: Some(Level::Debug), ..Overrides::default() };
        let config = Config::load(Some(&file), overrides).unwrap().complete();
        assert_eq!((config.root.as_path(), config.state.as_path()), (Path::new("/a"), Path::new("/run/tared")));
        assert_eq!(config.ttrpc.address, Path::new("/c/d.sock.ttrpc"));
        assert_eq!(config.debug, Debug { level: Level::Debug, format: Format::Json });
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        for (text, word) in [
            ("colour = 'red'", "colour"),
            ("[grpc]\ntcp_address = 'x'", "tcp_address"),
            ("state = 'run'", "state = \"run\""),
            ("[debug]\nlevel = 'loud'", "loud"),
            ("root = '/same'\nstate = '/same'", "different folders"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Config::load(Some(&file), Overrides::default()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let missing = dir.path().join("none");
        assert!(Config::load(Some(&missing), Overrides::default()).is_err());
    }
}
