//! What a pod got, read from the last plugin's result.
//!
//! Source: SPEC.md, "ADD Success"; its version 0.2.0 for `ip4` and `ip6`.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::capability::Dns;
use crate::error::{Error, Result};

/// A pod's place in its networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// On `eth0`, in the plugins' order.
    pub addresses: Vec<Address>,
    /// What the plugins say of name servers.
    pub dns: Dns,
    /// Each network's own result.
    pub results: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
}

impl PodNetwork {
    /// The pod's address, and its others: the first IPv4 one counts most, as kubelets expect.
    pub fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = self.addresses.iter().map(|address| address.ip).collect();
        if let Some(first) = ips.iter().position(IpAddr::is_ipv4) {
            let first = ips.remove(first);
            ips.insert(0, first);
        }
        ips
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    #[serde(default)]
    dns: Option<WireDns>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    gateway: Option<String>,
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct OldIp {
    ip: String,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct WireDns {
    #[serde(default)]
    nameservers: Vec<String>,
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

/// A result's addresses on `interface`, and its name servers.
///
/// # Errors
/// `Unknown`: it cannot be read.
pub fn read(result: &Map<String, Value>, interface: &str) -> Result<(Vec<Address>, Dns)> {
    let wrong = |why: &dyn std::fmt::Display| Error::Unknown(format!("reading a plugin's result: {why}"));
    let wire = Wire::deserialize(Value::Object(result.clone())).map_err(|error| wrong(&error))?;
    let mut addresses = Vec::new();
    for ip in &wire.ips {
        let on = match ip.interface {
            None => interface, // what it does not say is the one that was asked for
            Some(n) => {
                let found = usize::try_from(n).ok().and_then(|n| wire.interfaces.get(n));
                &found.ok_or_else(|| wrong(&format!("{} is on interface {n}, which is not there", ip.address)))?.name
            }
        };
        if on == interface {
            addresses.push(address(&ip.address, ip.gateway.as_deref()).map_err(|why| wrong(&why))?);
        }
    }
    for old in [&wire.ip4, &wire.ip6].into_iter().flatten() {
        addresses.push(address(&old.ip, old.gateway.as_deref()).map_err(|why| wrong(&why))?);
    }
    let dns = wire.dns.map_or_else(Dns::default, |dns| Dns {
        servers: dns.nameservers,
        searches: dns.search,
        options: dns.options,
    });
    Ok((addresses, dns))
}

fn address(cidr: &str, gateway: Option<&str>) -> std::result::Result<Address, String> {
    let wrong = || format!("{cidr:?} is not ADDRESS/PREFIX");
    let (ip, prefix) = cidr.split_once('/').ok_or_else(wrong)?;
    let (ip, prefix): (IpAddr, u8) = (ip.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
    let gateway = gateway.filter(|text| !text.is_empty()).map(str::parse).transpose();
    Ok(Address { ip, prefix, gateway: gateway.map_err(|_| format!("{cidr}: its gateway is no address"))? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ips(result: Value) -> Result<Vec<String>> {
        let Value::Object(result) = result else { panic!("an object") };
        let (addresses, dns) = read(&result, "eth0")?;
        let network = PodNetwork { addresses, dns, results: Vec::new() };
        Ok(network.ips().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_pods_address_is_the_first_ipv4_one_on_its_own_interface() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "fd00::2/64", "interface": 2},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2},
                {"address": "10.0.0.3/24"},
            ],
        });
        assert_eq!(ips(result).unwrap(), ["10.0.0.2", "fd00::2", "10.0.0.3"]);
        assert_eq!(ips(json!({"ip4": {"ip": "10.1.0.2/16"}})).unwrap(), ["10.1.0.2"]);
    }

    #[test]
    fn what_cannot_be_a_result_is_refused() {
        for (result, word) in [
            (json!({"ips": [{"address": "10.0.0.2"}]}), "\"10.0.0.2\" is not ADDRESS/PREFIX"),
            (json!({"ips": [{"address": "10.0.0.2/8", "interface": 3}]}), "interface 3"),
            (json!({"ips": [{"address": "10.0.0.2/8", "gateway": "x"}]}), "gateway"),
            (json!({"ips": 1}), "invalid type"),
        ] {
            let error = ips(result.clone()).unwrap_err().to_string();
            assert!(error.contains(word), "{result}: {error}");
        }
    }
}
