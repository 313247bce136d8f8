//! A container's hosts file: itself, its neighbours on the network, and what its user added.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::record::Record;
use crate::error::{Doing as _, Result};

pub const FILE: &str = "hosts";

/// Written over, not replaced: it is mounted in a container, and a new file would not be.
///
/// # Errors
/// The file cannot be written.
pub fn write<'r>(path: &Path, own: &'r Record, others: impl Iterator<Item = &'r Record>) -> Result<()> {
    fs::write(path, text(own, others)).doing(|| format!("writing {}", path.display()))
}

fn text<'r>(own: &'r Record, others: impl Iterator<Item = &'r Record>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for line in &own.hosts {
        text.push_str(line);
        text.push('\n');
    }
    for record in std::iter::once(own).chain(others) {
        let mut names = vec![record.hostname.as_str(), record.name.as_str()];
        names.extend(record.aliases.iter().map(String::as_str));
        names.retain(|name| !name.is_empty());
        names.dedup();
        for address in &record.addresses {
            let _ = writeln!(text, "{address}\t{}", names.join(" ")); // a String takes everything
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_finds_its_neighbours_by_all_their_names() {
        let record = |name: &str, address: &str, aliases: &[&str], hosts: &[&str]| Record {
            network: "n".into(),
            netns: "/x".into(),
            attachment: "a".into(),
            name: name.into(),
            hostname: name.into(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            hosts: hosts.iter().map(|line| (*line).to_owned()).collect(),
            ports: vec![],
            wanted_address: None,
            mac: None,
            addresses: vec![address.parse().unwrap()],
        };
        let web = record("web", "10.0.0.2", &[], &["1.2.3.4\tmine"]);
        let db = record("db", "10.0.0.3", &["sql"], &["9.9.9.9\tnot-here"]);
        let text = text(&web, std::iter::once(&db));
        assert!(text.ends_with("1.2.3.4\tmine\n10.0.0.2\tweb\n10.0.0.3\tdb sql\n"), "{text}");
    }
}
