//! A network that we made: a bridge with addresses of its own, as a CNI list.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

use super::short_hash;
use crate::error::{Doing as _, Error, Result};

/// What has to be installed for such networks.
pub const PLUGINS: &[&str] = &["bridge", "host-local", "portmap"];
const FILE: &str = "network.conflist";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub subnets: Vec<String>,
    pub plugins: Vec<String>,
    pub internal: bool,
    /// The bridge's name on the host.
    pub bridge: String,
    list: Value,
}

impl Definition {
    /// # Errors
    /// `InvalidArgument`: the name, or an address, is none; or its addresses are another network's.
    pub fn new(
        folder: &Path,
        name: &str,
        subnet: &str,
        gateway: &str,
        internal: bool,
        others: &[Definition],
    ) -> Result<Definition> {
        check_name(name)?;
        let taken: Vec<Subnet> = others
            .iter()
            .flat_map(|other| &other.subnets)
            .filter_map(|text| Subnet::parse(text).ok())
            .chain(Subnet::of_the_host())
            .collect();
        let subnet = if subnet.is_empty() { Subnet::free(&taken)? } else { Subnet::parse(subnet)? };
        if let Some(other) = taken.iter().find(|other| other.overlaps(&subnet)) {
            return Err(Error::FailedPrecondition(format!("subnet {subnet}: overlaps {other}, which is in use")));
        }
        let mut range = json!({ "subnet": subnet.to_string() });
        if !gateway.is_empty() {
            let address: Option<Ipv4Addr> = gateway.parse().ok().filter(|address| subnet.holds(*address));
            let address =
                address.ok_or_else(|| Error::InvalidArgument(format!("gateway {gateway}: not in {subnet}")))?;
            range["gateway"] = address.to_string().into();
        }
        let bridge = format!("tare-{}", &short_hash(&[&folder.to_string_lossy(), name])[..8]);
        let routes = if internal { json!([]) } else { json!([{ "dst": "0.0.0.0/0" }]) };
        let list = json!({
            "cniVersion": "1.0.0", // what the plugins of Debian 12 speak
            "name": name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": bridge,
                    "isGateway": true,
                    "ipMasq": !internal,
                    "hairpinMode": true,
                    "capabilities": { "ips": true, "mac": true },
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[range]],
                        "routes": routes,
                        "dataDir": folder.join(".addresses"),
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        read(list)
    }

    /// # Errors
    /// The file cannot be read, or is not such a list.
    pub fn load(folder: &Path, name: &str) -> Result<Option<Definition>> {
        check_name(name)?;
        let path = folder.join(name).join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.doing(|| format!("reading {}", path.display()))?,
        };
        let list = serde_json::from_slice(&text).map_err(|error| error.to_string());
        let wrong = |why: String| Error::Internal(format!("reading {}: {why}", path.display()));
        read(list.map_err(wrong)?).map(Some)
    }

    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let own = folder.join(&self.name);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&own)?;
            fs::write(own.join(".new"), serde_json::to_vec_pretty(&self.list)?)?;
            fs::rename(own.join(".new"), own.join(FILE))
        };
        write().doing(|| format!("writing {}", own.display()))
    }

    /// # Errors
    /// The folder cannot be removed.
    pub fn remove(&self, folder: &Path) -> Result<()> {
        let own = folder.join(&self.name);
        fs::remove_dir_all(&own).doing(|| format!("removing {}", own.display()))
    }
}

/// What people want to know of a list.
fn read(list: Value) -> Result<Definition> {
    let wrong = |what: &str| Error::Internal(format!("a network's list has no {what}"));
    let name = list["name"].as_str().ok_or_else(|| wrong("name"))?.to_owned();
    let plugins: Vec<String> = list["plugins"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned()))
        .collect();
    let bridge = &list["plugins"][0];
    let ranges = bridge["ipam"]["ranges"].as_array().into_iter().flatten().filter_map(Value::as_array).flatten();
    let subnets = ranges.filter_map(|range| Some(range["subnet"].as_str()?.to_owned())).collect();
    let internal = bridge["ipMasq"] == false;
    let bridge = bridge["bridge"].as_str().ok_or_else(|| wrong("bridge"))?.to_owned();
    Ok(Definition { name, subnets, plugins, internal, bridge, list })
}

/// A name that is a folder's, an interface's and a plugin's without trouble.
fn check_name(name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && good && name.len() <= 64 {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("network name {name:.80?} must be letters, digits, _, . and -")))
}

/// Addresses of version 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    first: u32,
    prefix: u32,
}

impl Subnet {
    fn parse(text: &str) -> Result<Subnet> {
        let wrong = |why: &str| Error::InvalidArgument(format!("subnet {text}: {why}"));
        let (address, prefix) = text.split_once('/').ok_or_else(|| wrong("is not ADDRESS/PREFIX"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong("is not an address of version 4"))?;
        let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix));
        let prefix = prefix.ok_or_else(|| wrong("its prefix is not 1 to 30"))?;
        Ok(Subnet { first: address.to_bits() & mask(prefix), prefix })
    }

    fn overlaps(&self, other: &Subnet) -> bool {
        let mask = mask(self.prefix.min(other.prefix));
        self.first & mask == other.first & mask
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.first
    }

    /// One of 10.89.0.0/24 to 10.89.255.0/24 that is not in use.
    fn free(taken: &[Subnet]) -> Result<Subnet> {
        let candidates =
            (0..256).map(|third| Subnet { first: Ipv4Addr::new(10, 89, third as u8, 0).to_bits(), prefix: 24 });
        let free = candidates.into_iter().find(|candidate| !taken.iter().any(|other| other.overlaps(candidate)));
        free.ok_or_else(|| Error::ResourceExhausted("no subnet of 10.89.0.0/16 is free: name one".into()))
    }

    /// What the machine routes somewhere, but for the default route. Source: proc_net(5), /proc/net/route.
    fn of_the_host() -> Vec<Subnet> {
        let text = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let read = |line: &str| {
            let words: Vec<&str> = line.split('\t').collect();
            let number = |at: usize| u32::from_str_radix(words.get(at)?.trim(), 16).ok().map(u32::swap_bytes);
            let (first, mask) = (number(1)?, number(7)?);
            (mask != 0).then_some(Subnet { first, prefix: mask.count_ones() })
        };
        text.lines().skip(1).filter_map(read).collect()
    }
}

fn mask(prefix: u32) -> u32 {
    u32::MAX << (32 - prefix)
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.first), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gets_addresses_that_nobody_has() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, subnet: &str, gateway: &str, others: &[Definition]| {
            Definition::new(dir.path(), name, subnet, gateway, false, others)
        };
        let first = make("a", "", "", &[]).unwrap();
        let second = make("b", "", "", std::slice::from_ref(&first)).unwrap();
        assert_ne!(first.subnets, second.subnets);
        assert_ne!(first.bridge, second.bridge);
        assert!(first.bridge.len() <= 15, "an interface's name");
        let clash = make("c", &first.subnets[0], "", std::slice::from_ref(&first)).unwrap_err();
        assert!(clash.to_string().contains("overlaps"), "{clash}");
        for (subnet, gateway) in [("10.1.0.0", ""), ("10.1.0.0/33", ""), ("x/24", ""), ("10.1.0.0/24", "10.2.0.1")] {
            assert!(make("d", subnet, gateway, &[]).is_err(), "{subnet} {gateway}");
        }
        for name in ["", "../x", "-a", "a b"] {
            assert!(make(name, "", "", &[]).is_err(), "{name:?}");
        }
        second.save(dir.path()).unwrap();
        assert_eq!(Definition::load(dir.path(), "b").unwrap(), Some(second.clone()));
        second.remove(dir.path()).unwrap();
        assert_eq!(Definition::load(dir.path(), "b").unwrap(), None);
    }
}
