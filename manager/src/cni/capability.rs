//! What a pod asks of the plugins that say they can do it.
//!
//! Source: containernetworking/cni CONVENTIONS.md, "Dynamic plugin specific fields".

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Each field goes to the plugins whose `capabilities` name it, and to no other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capabilities {
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Option<Bandwidth>,
    pub dns: Option<Dns>,
    /// Sets of ranges, as the IPAM plugin reads them: `[[{"subnet": "10.0.0.0/24"}]]`.
    pub ip_ranges: Option<Value>,
    pub ips: Vec<String>,
    pub mac: Option<String>,
    pub aliases: Vec<String>,
    pub cgroup_path: Option<String>,
    pub pod_annotations: Option<Map<String, Value>>,
}

/// A port of the host that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// All of the host's addresses if there is none.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Bits a second, and bits that may come at once; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    #[serde(skip_serializing_if = "none")]
    pub ingress_rate: u64,
    #[serde(skip_serializing_if = "none")]
    pub ingress_burst: u64,
    #[serde(skip_serializing_if = "none")]
    pub egress_rate: u64,
    #[serde(skip_serializing_if = "none")]
    pub egress_burst: u64,
}

fn none(rate: &u64) -> bool {
    *rate == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Bandwidth {
    /// The largest burst that the plugin's kernel interface takes.
    const BURST: u64 = u32::MAX as u64;
    const RATES: std::ops::RangeInclusive<f64> = 1e3..=1e15;

    /// From the annotations `kubernetes.io/ingress-bandwidth` and `…/egress-bandwidth`.
    ///
    /// # Errors
    /// `InvalidArgument`: a rate that is not a quantity from `1k` to `1P`.
    pub fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Bandwidth>> {
        let mut bandwidth = Bandwidth::default();
        for (key, rate, burst) in [
            ("kubernetes.io/ingress-bandwidth", &mut bandwidth.ingress_rate, &mut bandwidth.ingress_burst),
            ("kubernetes.io/egress-bandwidth", &mut bandwidth.egress_rate, &mut bandwidth.egress_burst),
        ] {
            if let Some(text) = get(key) {
                let bits = quantity(text).filter(|bits| Bandwidth::RATES.contains(bits));
                let bits = bits.ok_or_else(|| {
                    Error::InvalidArgument(format!("annotation {key} = {text:?} is not a rate from 1k to 1P"))
                })?;
                (*rate, *burst) = (bits as u64, Bandwidth::BURST);
            }
        }
        Ok(Some(bandwidth).filter(|bandwidth| *bandwidth != Bandwidth::default()))
    }
}

/// Kubernetes' way to write a number: `10M`, `1.5Gi`, `2e6`. Source: apimachinery pkg/api/resource.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("", 1.0),
    ];
    let (number, factor) = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    number.parse::<f64>().ok().filter(|_| plain).map(|number| number * factor)
}

impl Capabilities {
    /// As the plugins read them, by name; what nobody asked for is not there.
    pub(super) fn table(&self) -> Map<String, Value> {
        let mut table = Map::new();
        let mut put = |name: &str, asked: bool, value: Value| {
            if asked {
                table.insert(name.to_owned(), value);
            }
        };
        put("portMappings", !self.port_mappings.is_empty(), json!(self.port_mappings));
        put("bandwidth", self.bandwidth.is_some(), json!(self.bandwidth));
        put("dns", self.dns.is_some(), json!(self.dns));
        put("ipRanges", self.ip_ranges.is_some(), json!(self.ip_ranges));
        put("ips", !self.ips.is_empty(), json!(self.ips));
        put("mac", self.mac.is_some(), json!(self.mac));
        put("aliases", !self.aliases.is_empty(), json!(self.aliases));
        put("cgroupPath", self.cgroup_path.is_some(), json!(self.cgroup_path));
        put("io.kubernetes.cri.pod-annotations", self.pod_annotations.is_some(), json!(self.pod_annotations));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_quantity_within_what_the_kernel_takes() {
        let of = |text: &'static str| {
            Bandwidth::from_annotations(|key| (key == "kubernetes.io/ingress-bandwidth").then_some(text))
        };
        for (text, bits) in
            [("10M", 10_000_000), ("1Ki", 1024), ("1.5k", 1500), ("2e6", 2_000_000), ("1P", 1_000_000_000_000_000)]
        {
            let rate = of(text).unwrap().unwrap().ingress_rate;
            assert_eq!(rate, bits, "{text}");
        }
        for bad in ["", "1", "2P", "-5M", "M", "10X", "inf", "nan"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert_eq!(Bandwidth::from_annotations(|_| None).unwrap(), None);
    }

    #[test]
    fn plugins_get_the_names_that_the_conventions_give() {
        let asked = Capabilities {
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
                host_ip: Some("127.0.0.1".parse().unwrap()),
            }],
            bandwidth: Some(Bandwidth { ingress_rate: 1000, ingress_burst: 5, ..Bandwidth::default() }),
            mac: Some("02:00:00:00:00:01".into()),
            ..Capabilities::default()
        };
        let expect = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 5},
            "mac": "02:00:00:00:00:01",
        });
        assert_eq!(Value::Object(asked.table()), expect);
    }
}
