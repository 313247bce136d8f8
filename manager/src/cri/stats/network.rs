//! What went through a pod's interfaces, as the process in its network namespace sees it.
//!
//! Source: proc_pid_net(5), `/proc/net/dev`.

use tare_proto::runtime::v1 as pb;

use super::value;

/// The counters of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Bytes, packets, errors, dropped.
    pub received: [u64; 4],
    pub sent: [u64; 4],
}

pub fn interfaces(pid: u32) -> Option<Vec<Interface>> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(parse(&table))
}

pub fn usage(pid: u32, at: i64) -> Option<pb::NetworkUsage> {
    let mut all = interfaces(pid)?.into_iter().filter(|interface| interface.name != "lo").map(shown);
    let all: Vec<pb::NetworkInterfaceUsage> = all.by_ref().collect();
    let default_interface = all.iter().find(|interface| interface.name == "eth0").cloned();
    let interfaces = all.into_iter().filter(|interface| interface.name != "eth0").collect();
    Some(pb::NetworkUsage { timestamp: at, default_interface, interfaces })
}

fn shown(interface: Interface) -> pb::NetworkInterfaceUsage {
    pb::NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: value(interface.received[0]),
        rx_errors: value(interface.received[2]),
        tx_bytes: value(interface.sent[0]),
        tx_errors: value(interface.sent[2]),
    }
}

fn parse(table: &str) -> Vec<Interface> {
    let rows = table.lines().skip(2).filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let four = |from: usize| counters.get(from..from + 4)?.try_into().ok();
        Some(Interface { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_columns() {
        let table = "Inter-| Receive\n face |bytes\n    lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  eth0:10 0 1 0 0 0 0 0 20 0 2 0 0 0 0 0\n";
        let all = parse(table);
        assert_eq!((all[0].name.as_str(), all[0].received, all[0].sent), ("lo", [1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!((all[1].name.as_str(), all[1].received[0], all[1].sent[2]), ("eth0", 10, 2));
    }
}
