//! A container's network, and the files in /etc that go with it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use tare_proto::tare::network::v1 as pb;

use super::flags::Flags;
use crate::ctl::client::{Client, said};
use crate::ctl::container::Folder;
use crate::oci::{Asked, Bind, Place};

/// Where a container's network comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    Host,
    /// Loopback alone.
    None,
    /// That of another container.
    Of(String),
    Named(String),
}

impl Choice {
    /// What the flags say, or the daemon's default.
    pub async fn of(client: &Client, flags: &Flags) -> Result<Choice> {
        let choice = match flags.network.as_deref() {
            Some("host") => Choice::Host,
            Some("none") => Choice::None,
            Some("default") | None => Choice::default(client, flags).await?,
            Some(name) => match name.strip_prefix("container:") {
                Some(other) => Choice::Of(other.to_owned()),
                None => Choice::Named(name.to_owned()),
            },
        };
        let named = matches!(choice, Choice::Named(_));
        for (flag, given) in [
            ("--publish", !flags.publish.is_empty()),
            ("--network-alias", !flags.network_alias.is_empty()),
            ("--ip", flags.ip.is_some()),
            ("--mac-address", flags.mac_address.is_some()),
        ] {
            ensure!(named || !given, "{flag}: needs a network: --net {} has none", choice.name());
        }
        Ok(choice)
    }

    async fn default(client: &Client, flags: &Flags) -> Result<Choice> {
        let listed = client.networks().list(client.request(pb::ListRequest {})).await.map_err(said)?.into_inner();
        if !listed.default.is_empty() {
            return Ok(Choice::Named(listed.default));
        }
        if flags.network.is_none() && flags.publish.is_empty() {
            eprintln!("tarectl: no CNI plugins are installed: the container has no network (--net none says so, too)");
            return Ok(Choice::None);
        }
        bail!("--net: no CNI plugins are installed: see the daemon's cri.cni.bin_dirs");
    }

    /// As `inspect` tells it.
    pub fn name(&self) -> String {
        match self {
            Choice::Host => "host".into(),
            Choice::None => "none".into(),
            Choice::Of(other) => format!("container:{other}"),
            Choice::Named(name) => name.clone(),
        }
    }
}

/// Gives the container its network and its files; returns its published ports, as `ps` shows them.
pub async fn give(
    client: &Client,
    flags: &Flags,
    choice: &Choice,
    id: &str,
    folder: &Folder,
    asked: &mut Asked,
) -> Result<String> {
    let hosts = added_hosts(flags)?;
    let mut shown = String::new();
    if let Choice::Named(name) = choice {
        let request = pb::AttachRequest {
            container: id.into(),
            network: name.clone(),
            ports: flags.publish.iter().map(|text| ports(text)).collect::<Result<Vec<_>>>()?.concat(),
            hostname: asked.hostname.clone().unwrap_or_default(),
            aliases: flags.network_alias.clone(),
            hosts,
            address: flags.ip.map(|address| address.to_string()).unwrap_or_default(),
            mac: flags.mac_address.clone().unwrap_or_default(),
        };
        let given = client.networks().attach(client.request(request)).await.map_err(said)?.into_inner();
        asked.network = Place::Join(given.netns.into());
        shown = given.ports.iter().map(show).collect::<Vec<_>>().join(", ");
    } else {
        write(&folder.path().join("hosts"), &other_hosts(choice, asked, &hosts)?)?;
    }
    let hostname = asked.hostname.clone().unwrap_or_default() + "\n";
    write(&folder.path().join("hostname"), &hostname)?;
    write(&folder.path().join("resolv.conf"), &resolver(flags, choice)?)?;
    for (file, target) in [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")]
    {
        if !asked.binds.iter().any(|bind| bind.target == target) {
            let source = folder.path().join(file).to_string_lossy().into_owned();
            let options = ["rbind", "rprivate", "rw"].map(str::to_owned).to_vec();
            asked.binds.push(Bind { source, target: target.into(), options });
        }
    }
    Ok(shown)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Undoes [`give`]. The error on its way matters more than what fails here.
pub async fn take(client: &Client, id: &str) {
    let _ = client.networks().detach(client.request(pb::DetachRequest { container: id.into() })).await;
}

/// The host's own names for a container on the host's network, else little more than itself.
fn other_hosts(choice: &Choice, asked: &Asked, added: &[String]) -> Result<String> {
    let mut text = if *choice == Choice::Host {
        fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        format!(
            "127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
            asked.hostname.as_deref().unwrap_or("")
        )
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in added {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// `--add-host NAME:ADDRESS`, or with `=`.
fn added_hosts(flags: &Flags) -> Result<Vec<String>> {
    let line = |text: &String| {
        let wrong = || format!("--add-host {text}: not NAME:ADDRESS");
        let (name, address) = text.split_once(['=', ':']).with_context(wrong)?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = bare.parse().ok().with_context(wrong)?;
        ensure!(!name.is_empty() && !name.contains(char::is_whitespace), wrong());
        Ok(format!("{address}\t{name}"))
    };
    flags.add_host.iter().map(line).collect()
}

/// The host's resolver; but name servers on the host's loopback are out of reach from another network.
fn resolver(flags: &Flags, choice: &Choice) -> Result<String> {
    const STUB: &str = "/etc/resolv.conf";
    const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";
    for server in &flags.dns {
        ensure!(server.parse::<IpAddr>().is_ok(), "--dns {server}: not an address");
    }
    let host = fs::read_to_string(STUB).unwrap_or_default();
    if *choice == Choice::Host && flags.dns.is_empty() && flags.dns_search.is_empty() && flags.dns_option.is_empty() {
        return Ok(host);
    }
    let reachable =
        |text: &str| words(text, "nameserver").into_iter().filter(|server| is_reachable(server, choice)).collect();
    let mut servers: Vec<String> = if flags.dns.is_empty() { reachable(&host) } else { flags.dns.clone() };
    if servers.is_empty() {
        servers = reachable(&fs::read_to_string(BEHIND_THE_STUB).unwrap_or_default());
    }
    let or = |given: &[String], key: &str| if given.is_empty() { words(&host, key) } else { given.to_vec() };
    let search: Vec<String> = or(&flags.dns_search, "search").into_iter().filter(|domain| domain != ".").collect();
    let options = or(&flags.dns_option, "options");
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (key, values) in [("search", search), ("options", options)] {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    }
    Ok(text)
}

fn is_reachable(server: &str, choice: &Choice) -> bool {
    *choice == Choice::Host || server.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback())
}

/// What a resolver's file says behind `key`. Source: resolv.conf(5).
fn words(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(key));
    lines
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect()
}

/// Reads `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`, with ranges `FIRST-LAST` of one length on both sides.
fn ports(text: &str) -> Result<Vec<pb::Port>> {
    let wrong = || format!("--publish {text}: not [[ADDRESS:]PORT:]PORT[/PROTOCOL]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    ensure!(matches!(protocol.as_str(), "tcp" | "udp" | "sctp"), "--publish {text}: unknown protocol {protocol}");
    let (rest, container) = rest.rsplit_once(':').map_or((None, rest), |(rest, port)| (Some(rest), port));
    let (address, host) = match rest {
        None => ("", ""),
        Some(rest) => rest.rsplit_once(':').unwrap_or(("", rest)),
    };
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() {
        address.parse::<IpAddr>().ok().with_context(wrong)?;
    }
    let (first, last) = range(container).with_context(wrong)?;
    let host = if host.is_empty() { None } else { Some(range(host).with_context(wrong)?) };
    if let Some((low, high)) = host {
        ensure!(high - low == last - first, "--publish {text}: the ranges differ in length");
    }
    let port = |offset: u32| pb::Port {
        host_address: address.to_owned(),
        host_port: host.map_or(0, |(low, _)| low + offset),
        container_port: first + offset,
        protocol: protocol.clone(),
    };
    Ok((0..=last - first).map(port).collect())
}

fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).map(u32::from);
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

/// As docker shows it.
fn show(port: &pb::Port) -> String {
    let address = match port.host_address.as_str() {
        "" => "0.0.0.0".to_owned(),
        address if address.contains(':') => format!("[{address}]"),
        address => address.to_owned(),
    };
    format!("{address}:{}->{}/{}", port.host_port, port.container_port, port.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let shown = |text: &str| ports(text).map(|ports| ports.iter().map(show).collect::<Vec<_>>().join(" "));
        for (text, expected) in [
            ("80", "0.0.0.0:0->80/tcp"),
            ("8080:80", "0.0.0.0:8080->80/tcp"),
            ("127.0.0.1:8080:80/UDP", "127.0.0.1:8080->80/udp"),
            ("127.0.0.1::80", "127.0.0.1:0->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
            ("8000-8001:80-81", "0.0.0.0:8000->80/tcp 0.0.0.0:8001->81/tcp"),
        ] {
            assert_eq!(shown(text).unwrap(), expected);
        }
        for bad in ["", "x", "80:", "0:80", "70000:80", "8080:80/icmp", "1-2:80", "2-1:1-2", "host:1:2"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn name_servers_on_the_host_s_loopback_are_not_for_containers() {
        let flags = Flags { dns: vec!["9.9.9.9".into()], dns_search: vec!["example".into()], ..Flags::default() };
        let text = resolver(&flags, &Choice::None).unwrap();
        assert!(text.starts_with("nameserver 9.9.9.9\nsearch example\n"), "{text}");
        assert!(!is_reachable("127.0.0.53", &Choice::None) && is_reachable("127.0.0.53", &Choice::Host));
        assert_eq!(words("nameserver 1.1.1.1\n# no\nsearch a b\nnameservers x\n", "search"), ["a", "b"]);
        assert!(resolver(&Flags { dns: vec!["x".into()], ..Flags::default() }, &Choice::None).is_err());
    }

    #[test]
    fn added_hosts_are_read_in_both_spellings() {
        let lines = |text: &str| added_hosts(&Flags { add_host: vec![text.into()], ..Flags::default() });
        assert_eq!(lines("db:10.0.0.1").unwrap(), ["10.0.0.1\tdb"]);
        assert_eq!(lines("db=::1").unwrap(), ["::1\tdb"]);
        assert_eq!(lines("db:[::1]").unwrap(), ["::1\tdb"]);
        for bad in ["db", ":1.2.3.4", "db:x", "a b:1.2.3.4"] {
            assert!(lines(bad).is_err(), "{bad}");
        }
    }
}
