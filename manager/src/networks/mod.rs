//! Networks of containers that no kubelet looks after: `tarectl run --net NAME`, `tarectl net`.
//!
//! A network is a CNI list in a folder of its own, `networks/NAME/`. What a container was given is written into its folder
//! before it is given ([`Record`]), so that it can be taken away by whoever comes after a crash, and given again after a
//! reboot, when namespaces are gone. It stays as long as the container does, through stops and starts: whoever starts a
//! container again finds its namespace where the specification says.

mod definition;
mod hosts;
mod link;
mod record;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::statfs;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::cni::{self, netns};
use crate::error::{Doing as _, Error, Result};
use crate::names::{Id, Namespace};
pub use definition::Definition;
pub use record::{Port, Record};

/// The network of containers that do not choose.
pub const DEFAULT: &str = "bridge";
/// Words that mean something else where a network is named.
const RESERVED: &[&str] = &["host", "none", "container", "default"];

/// Clones share it.
#[derive(Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

struct Inner {
    /// A folder for each network.
    folder: PathBuf,
    /// A folder for each container, below one for each namespace.
    containers: PathBuf,
    settings: cni::Settings,
    /// Networks and ports are given out one after the other.
    giving: Mutex<()>,
}

/// What a container asks for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub network: String,
    pub ports: Vec<Port>,
    pub hostname: String,
    pub aliases: Vec<String>,
    pub hosts: Vec<String>,
    pub address: Option<IpAddr>,
    pub mac: Option<String>,
}

impl Networks {
    pub fn new(root: &Path, containers: PathBuf, settings: cni::Settings) -> Networks {
        let folder = root.join("networks");
        Networks { inner: Arc::new(Inner { folder, containers, settings, giving: Mutex::default() }) }
    }

    /// Whether there are plugins for the networks that we make.
    pub fn is_able(&self) -> bool {
        let installed =
            |program: &&str| self.inner.settings.bin_dirs.iter().any(|folder| folder.join(program).exists());
        definition::PLUGINS.iter().all(installed)
    }

    /// Those that were made, and the default one, which needs no making.
    ///
    /// # Errors
    /// A folder or file cannot be read.
    pub fn list(&self) -> Result<Vec<Definition>> {
        let mut found = Vec::new();
        for name in names(&self.inner.folder)? {
            if let Some(definition) = Definition::load(&self.inner.folder, &name)? {
                found.push(definition);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// # Errors
    /// `InvalidArgument`: the name or an address is none; `AlreadyExists`; or there is no room for it.
    pub async fn create(&self, name: &str, subnet: &str, gateway: &str, internal: bool) -> Result<Definition> {
        if RESERVED.contains(&name) {
            return Err(Error::InvalidArgument(format!("network name {name:?}: has a meaning of its own")));
        }
        let _giving = self.inner.giving.lock().await;
        self.make(name, subnet, gateway, internal)
    }

    fn make(&self, name: &str, subnet: &str, gateway: &str, internal: bool) -> Result<Definition> {
        if Definition::load(&self.inner.folder, name)?.is_some() {
            return Err(Error::AlreadyExists(format!("network {name}")));
        }
        let others = self.list()?;
        let definition = Definition::new(&self.inner.folder, name, subnet, gateway, internal, &others)?;
        definition.save(&self.inner.folder)?;
        Ok(definition)
    }

    /// Removes a network that no container is on, with its bridge.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition`: a container is on it.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let _giving = self.inner.giving.lock().await;
        let missing = || Error::NotFound(format!("network {name}"));
        let definition = Definition::load(&self.inner.folder, name)?.ok_or_else(missing)?;
        if let Some((of, _)) = self.on(name)?.first() {
            return Err(Error::FailedPrecondition(format!("network {name} is used by container {of}")));
        }
        link::delete(&definition.bridge)?;
        definition.remove(&self.inner.folder)
    }

    /// The containers on a network, as `NAMESPACE/NAME`, with what they were given.
    ///
    /// # Errors
    /// A folder or file cannot be read.
    pub fn on(&self, network: &str) -> Result<Vec<(String, Record)>> {
        let mut found = Vec::new();
        for (namespace, id, folder) in self.folders()? {
            if let Some(record) = Record::load(&folder)?.filter(|record| record.network == network) {
                found.push((format!("{namespace}/{id}"), record));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Gives a container a namespace on a network.
    ///
    /// # Errors
    /// `NotFound`: there is no such network; `AlreadyExists`: the container has one; `FailedPrecondition`: a port is
    /// taken; or a plugin's. Then nothing is left.
    pub async fn attach(&self, namespace: &Namespace, id: &Id, asked: Asked) -> Result<Record> {
        let _giving = self.inner.giving.lock().await;
        if Definition::load(&self.inner.folder, &asked.network)?.is_none() {
            if asked.network != DEFAULT {
                return Err(Error::NotFound(format!("network {}", asked.network)));
            }
            self.make(DEFAULT, "", "", false)?;
        }
        let folder = self.folder(namespace, id);
        if Record::load(&folder)?.is_some() {
            return Err(Error::AlreadyExists(format!("the network of container {id}")));
        }
        let ports = self.choose_ports(asked.ports)?;
        let netns = Path::new(netns::FOLDER).join(format!("tare-{}", self.hash(namespace, id)));
        let record = Record {
            network: asked.network,
            netns,
            attachment: self.hash(namespace, id),
            name: id.to_string(),
            hostname: asked.hostname,
            aliases: asked.aliases,
            hosts: asked.hosts,
            ports,
            wanted_address: asked.address,
            mac: asked.mac,
            addresses: Vec::new(),
        };
        record.save(&folder)?; // before anything is given
        match self.give(&folder, record).await {
            Ok(record) => Ok(record),
            Err(error) => {
                if let Err(more) = self.take(&folder).await {
                    tracing::warn!(%namespace, %id, "after a network that failed: {more}");
                }
                Err(error)
            }
        }
    }

    /// Takes away what a container was given, if it was given anything. May be repeated.
    ///
    /// # Errors
    /// A plugin's or the kernel's; what was not taken away is tried again by the next call.
    pub async fn detach(&self, namespace: &Namespace, id: &Id) -> Result<()> {
        self.detach_folder(&self.folder(namespace, id)).await
    }

    /// As [`Networks::detach`], by the container's folder.
    ///
    /// # Errors
    /// As [`Networks::detach`].
    pub async fn detach_folder(&self, folder: &Path) -> Result<()> {
        if Record::load(folder)?.is_none() {
            return Ok(());
        }
        let _giving = self.inner.giving.lock().await;
        self.take(folder).await
    }

    /// Gives again what a reboot took: namespaces are gone then, and bridges and rules with them.
    ///
    /// # Errors
    /// A folder cannot be read. A network that cannot be given again is told in the log, and its containers do not start.
    pub async fn restore(&self) -> Result<()> {
        let _giving = self.inner.giving.lock().await;
        for (namespace, id, folder) in self.folders()? {
            match Record::load(&folder) {
                Ok(Some(record)) if !is_pinned(&record.netns) => {
                    let again = async {
                        self.network(&record.network).remove(&record.attachment(None)?).await?;
                        netns::remove(&record.netns)?;
                        self.give(&folder, record).await
                    };
                    if let Err(error) = again.await {
                        tracing::error!(namespace, id, "giving a container its network again: {error}");
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::error!(namespace, id, "{error}"),
            }
        }
        Ok(())
    }

    async fn give(&self, folder: &Path, mut record: Record) -> Result<Record> {
        netns::make(&record.netns)?;
        let attachment = record.attachment(Some(record.netns.clone()))?;
        let network = self.network(&record.network).add(&attachment).await?;
        record.addresses = network.ips();
        record.save(folder)?;
        self.tell_neighbours(&record.network)?;
        Ok(record)
    }

    async fn take(&self, folder: &Path) -> Result<()> {
        let Some(record) = Record::load(folder)? else { return Ok(()) };
        self.network(&record.network).remove(&record.attachment(Some(record.netns.clone()))?).await?;
        netns::remove(&record.netns)?;
        Record::forget(folder)?;
        self.tell_neighbours(&record.network)
    }

    /// Writes the hosts files of all containers on a network.
    fn tell_neighbours(&self, network: &str) -> Result<()> {
        let records: Vec<(PathBuf, Record)> = self
            .folders()?
            .into_iter()
            .filter_map(|(_, _, folder)| Some((folder.clone(), Record::load(&folder).ok()??)))
            .filter(|(_, record)| record.network == network)
            .collect();
        for (folder, own) in &records {
            let others = records.iter().filter(|(other, _)| other != folder).map(|(_, record)| record);
            hosts::write(&folder.join(hosts::FILE), own, others)?;
        }
        Ok(())
    }

    /// A free port of the host where none is named, and none that another container has.
    fn choose_ports(&self, asked: Vec<Port>) -> Result<Vec<Port>> {
        let mut taken: Vec<Port> = Vec::new();
        for (_, _, folder) in self.folders()? {
            taken.extend(Record::load(&folder)?.into_iter().flat_map(|record| record.ports));
        }
        let mut ports = Vec::new();
        for mut port in asked {
            if port.host == 0 {
                port.host = port.free()?;
            }
            if let Some(other) = taken.iter().find(|other| other.overlaps(&port)) {
                return Err(Error::FailedPrecondition(format!("port {other} is already allocated")));
            }
            port.check_free()?;
            taken.push(port.clone());
            ports.push(port);
        }
        Ok(ports)
    }

    fn network(&self, name: &str) -> cni::Network {
        let settings = cni::Settings {
            conf_dir: self.inner.folder.join(name),
            max_conf_num: 1,
            built_in: false,
            ours: true,
            ..self.inner.settings.clone()
        };
        cni::Network::new(settings, &self.inner.folder.join(".results"))
    }

    fn folder(&self, namespace: &Namespace, id: &Id) -> PathBuf {
        self.inner.containers.join(namespace.as_str()).join(id.as_str())
    }

    fn folders(&self) -> Result<Vec<(String, String, PathBuf)>> {
        let mut found = Vec::new();
        for namespace in names(&self.inner.containers)? {
            let folder = self.inner.containers.join(&namespace);
            found.extend(names(&folder)?.into_iter().map(|id| (namespace.clone(), id.clone(), folder.join(id))));
        }
        Ok(found)
    }

    /// A name for a container on this machine, whatever other daemons run on it.
    fn hash(&self, namespace: &Namespace, id: &Id) -> String {
        short_hash(&[&self.inner.containers.to_string_lossy(), namespace.as_str(), id.as_str()])
    }
}

/// Sixteen hexadecimal digits that stand for some texts.
fn short_hash(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The visible folders in a folder; none if there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(|| format!("reading {}", folder.display()))?,
    };
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    Ok(entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(name)
        .filter(|name| !name.starts_with('.'))
        .collect())
}

/// Whether a namespace is mounted there. Source: statfs(2), `NSFS_MAGIC`.
fn is_pinned(path: &Path) -> bool {
    const NSFS: u64 = 0x6e73_6673;
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == NSFS))
}

/// All of the host's addresses.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
