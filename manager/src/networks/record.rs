//! What a container was given, in its folder.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ANY;
use crate::cni::{Attachment, PortMapping, Protocol};
use crate::error::{Doing as _, Error, Result};

const FILE: &str = "network.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub network: String,
    pub netns: PathBuf,
    /// The container's name for plugins.
    pub attachment: String,
    pub name: String,
    pub hostname: String,
    pub aliases: Vec<String>,
    /// Further lines of its hosts file.
    pub hosts: Vec<String>,
    pub ports: Vec<Port>,
    pub wanted_address: Option<IpAddr>,
    pub mac: Option<String>,
    /// Empty until the plugins have given them.
    pub addresses: Vec<IpAddr>,
}

impl Record {
    /// # Errors
    /// The file cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Record>> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.doing(|| format!("reading {}", path.display()))?,
        };
        let record = serde_json::from_slice(&text);
        record.map(Some).map_err(|error| Error::Internal(format!("reading {}: {error}", path.display())))
    }

    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (path, aside) = (folder.join(FILE), folder.join(".network.json"));
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::Internal(error.to_string()))?;
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let file = fs::File::create(&aside)?;
            std::io::Write::write_all(&mut &file, &text)?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        };
        write().doing(|| format!("writing {}", path.display()))
    }

    /// # Errors
    /// The file cannot be removed.
    pub fn forget(folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        fs::remove_file(&path).doing(|| format!("removing {}", path.display()))
    }

    /// What plugins are asked.
    ///
    /// # Errors
    /// The name is not fit for a plugin's environment.
    pub fn attachment(&self, netns: Option<PathBuf>) -> Result<Attachment> {
        let mut attachment = Attachment::new(&self.attachment, netns)?;
        attachment.capabilities.port_mappings = self.ports.iter().map(Port::mapping).collect();
        attachment.capabilities.ips = self.wanted_address.iter().map(ToString::to_string).collect();
        attachment.capabilities.mac.clone_from(&self.mac);
        Ok(attachment)
    }
}

/// A port of the host that leads to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// All of the host's addresses if there is none.
    pub address: Option<IpAddr>,
    /// 0 for any that is free.
    pub host: u16,
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl Port {
    fn mapping(&self) -> PortMapping {
        PortMapping {
            host_port: self.host,
            container_port: self.container,
            protocol: match self.protocol.as_str() {
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            host_ip: self.address,
        }
    }

    /// Whether one of them would take the other's connections.
    pub fn overlaps(&self, other: &Port) -> bool {
        let any = |port: &Port| port.address.is_none_or(|address| address.is_unspecified());
        self.host == other.host
            && self.protocol == other.protocol
            && (any(self) || any(other) || self.address == other.address)
    }

    fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address.unwrap_or(ANY), self.host)
    }

    /// A port that nobody listens on.
    ///
    /// # Errors
    /// There is none, or the address is not one of this machine.
    pub fn free(&self) -> Result<u16> {
        let found = if self.protocol == "udp" {
            UdpSocket::bind(self.socket()).and_then(|socket| socket.local_addr())
        } else {
            TcpListener::bind(self.socket()).and_then(|socket| socket.local_addr())
        };
        found.map(|address| address.port()).map_err(|error| self.refused(&error))
    }

    /// A process of the host that listens would be cut off without a word.
    ///
    /// # Errors
    /// `FailedPrecondition`: one does.
    pub fn check_free(&self) -> Result<()> {
        let bound = match self.protocol.as_str() {
            "udp" => UdpSocket::bind(self.socket()).map(drop),
            "tcp" => TcpListener::bind(self.socket()).map(drop),
            _ => Ok(()),
        };
        bound.map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &std::io::Error) -> Error {
        match Error::io(format!("port {self}"), error) {
            Error::Internal(text) => Error::FailedPrecondition(text),
            other => other,
        }
    }
}

/// As `ps` shows it: `0.0.0.0:8080->80/tcp`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address.unwrap_or(ANY), self.host);
        write!(f, "{address}->{}/{}", self.container, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: Option<&str>, host: u16, protocol: &str) -> Port {
        let address = address.map(|text| text.parse().unwrap());
        Port { address, host, container: 80, protocol: protocol.into() }
    }

    #[test]
    fn ports_that_would_take_each_other_s_connections_overlap() {
        let all = port(None, 8080, "tcp");
        assert_eq!(all.to_string(), "0.0.0.0:8080->80/tcp");
        assert!(all.overlaps(&port(Some("127.0.0.1"), 8080, "tcp")));
        assert!(!all.overlaps(&port(None, 8080, "udp")) && !all.overlaps(&port(None, 8081, "tcp")));
        assert!(!port(Some("127.0.0.1"), 1, "tcp").overlaps(&port(Some("127.0.0.2"), 1, "tcp")));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = port(Some("127.0.0.1"), listener.local_addr().unwrap().port(), "tcp");
        assert!(matches!(taken.check_free(), Err(Error::FailedPrecondition(_))));
        assert_ne!(port(Some("127.0.0.1"), 0, "udp").free().unwrap(), 0);
    }

    #[test]
    fn what_was_given_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), None);
        let record = Record {
            network: "n".into(),
            netns: "/run/netns/x".into(),
            attachment: "abc".into(),
            name: "web".into(),
            hostname: "web".into(),
            aliases: vec![],
            hosts: vec![],
            ports: vec![port(None, 1, "tcp")],
            wanted_address: None,
            mac: None,
            addresses: vec!["10.0.0.2".parse().unwrap()],
        };
        record.save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), Some(record));
        Record::forget(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Record::load(dir.path()).is_err());
    }
}
