//! Which servers answer for a registry: its mirrors and itself, as a folder of `hosts.toml` files says.
//!
//! ```toml
//! server = "https://registry.example"
//! [host."https://mirror.example:5000"]
//!   capabilities = ["pull", "resolve"]      # and "push"; without the key all three
//!   ca = "mirror.crt"                       # or a list
//!   client = [["mirror.cert", "mirror.key"]]
//!   skip_verify = false
//!   override_path = false                   # the address is whole: no /v2 is added
//!   [host."https://mirror.example:5000".header]
//!     x-key = "value"                       # or a list
//! ```
//!
//! What stands above the first `[host]` is of the server itself. Source: containerd docs/hosts.md.

use std::path::{Path, PathBuf};

use hyper::Uri;
use toml::{Table, Value};

use super::reference::{Reference, is_local};
use crate::error::{Doing as _, Error, Result};

/// What a server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Content by digest.
    Pull,
    /// What a tag stands for.
    Resolve,
    Push,
}

/// One server, as it is to be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub scheme: String,
    /// `host[:port]`
    pub authority: String,
    /// Before the repository: `/v2`.
    pub path: String,
    pub capabilities: Vec<Capability>,
    /// Trusted beside what this machine trusts.
    pub ca: Vec<PathBuf>,
    /// Certificate and key; without a key, the certificate's file has it too.
    pub clients: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
    pub headers: Vec<(String, String)>,
}

const ALL: [Capability; 3] = [Capability::Pull, Capability::Resolve, Capability::Push];

impl Host {
    fn at(scheme: &str, authority: &str) -> Host {
        Host {
            scheme: scheme.into(),
            authority: authority.into(),
            path: "/v2".into(),
            capabilities: ALL.to_vec(),
            ca: Vec::new(),
            clients: Vec::new(),
            skip_verify: false,
            headers: Vec::new(),
        }
    }

    /// The registry that a reference names.
    fn own(reference: &Reference, scheme: Option<&str>) -> Host {
        let authority = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        Host::at(scheme.unwrap_or(default_scheme(&reference.host)), authority)
    }

    /// Whether it is the registry itself, and no mirror of it.
    pub fn is_own(&self, reference: &Reference) -> bool {
        self.authority == reference.host || self.authority == Host::own(reference, None).authority
    }

    /// From an address, or a name alone.
    fn parse(text: &str, scheme: Option<&str>) -> Result<Host> {
        let whole = match text.contains("://") {
            true => text.to_owned(),
            false => {
                let authority = text.split('/').next().unwrap_or_default();
                format!("{}://{text}", scheme.unwrap_or(default_scheme(authority)))
            }
        };
        let wrong = || Error::InvalidArgument(format!("{text:?} is not the address of a registry"));
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        if authority.as_str().contains('@') {
            return Err(Error::InvalidArgument("a registry's address must not hold a password".into()));
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Host { path: path.into(), ..Host::at(scheme, authority.as_str()) })
    }
}

/// On this machine plain HTTP is what registries speak.
fn default_scheme(authority: &str) -> &'static str {
    if is_local(authority) { "http" } else { "https" }
}

/// The servers for a reference, in the order in which they are asked.
///
/// # Errors
/// A file cannot be read, or says something that is not understood.
pub fn servers(reference: &Reference, folder: Option<&Path>, scheme: Option<&str>) -> Result<Vec<Host>> {
    let own = Host::own(reference, scheme);
    let Some(folder) = folder.and_then(|folder| folder_of(folder, &reference.host)) else { return Ok(vec![own]) };
    let file = folder.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) => read(&text, &folder, own, scheme).map_err(|error| match error {
            Error::InvalidArgument(text) => Error::InvalidArgument(format!("{}: {text}", file.display())),
            error => error,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(vec![with_certificates(&folder, own)?]),
        Err(error) => Err(Error::io(format!("reading {}", file.display()), &error)),
    }
}

/// `HOST_PORT_` or `HOST:PORT` or `HOST`, else what counts for all.
fn folder_of(root: &Path, host: &str) -> Option<PathBuf> {
    let plain = match host.rsplit_once(':') {
        Some((name, port)) => format!("{name}_{port}_"),
        None => host.to_owned(),
    };
    [&plain, host, "_default"].iter().map(|name| root.join(name)).find(|folder| folder.is_dir())
}

/// A folder as docker has them: authorities in `*.crt`, ourselves in `*.cert` with the `*.key` of that name.
fn with_certificates(folder: &Path, mut host: Host) -> Result<Host> {
    let doing = || format!("reading {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).doing(doing)? {
        files.push(entry.doing(doing)?.path());
    }
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.ca.push(file),
            Some("cert") => host.clients.push((file.clone(), Some(file.with_extension("key")))),
            _ => {}
        }
    }
    Ok(host)
}

fn read(text: &str, folder: &Path, own: Host, scheme: Option<&str>) -> Result<Vec<Host>> {
    let table: Table =
        text.parse().map_err(|error: toml::de::Error| Error::InvalidArgument(error.message().to_owned()))?;
    let mut servers = Vec::new();
    let mut server = own;
    if let Some(address) = table.get("server") {
        let Value::String(address) = address else { return wrong("server", "must be a text") };
        let named = Host::parse(address, scheme)?;
        server = Host { path: if named.path.is_empty() { "/v2".into() } else { named.path.clone() }, ..named };
    }
    let mut own_keys = table.clone();
    own_keys.remove("server");
    let mirrors = own_keys.remove("host");
    settle(&mut server, &own_keys, folder, "")?;
    match mirrors {
        None => {}
        Some(Value::Table(mirrors)) => {
            for (address, keys) in mirrors {
                let place = format!("host.{address:?}.");
                let Value::Table(keys) = keys else { return wrong(&place, "must be a table") };
                let mut mirror = Host::parse(&address, scheme)?;
                settle(&mut mirror, &keys, folder, &place)?;
                servers.push(mirror);
            }
        }
        Some(_) => return wrong("host", "must be a table"),
    }
    servers.push(server);
    Ok(servers)
}

/// Reads the keys that any server can have.
fn settle(host: &mut Host, keys: &Table, folder: &Path, place: &str) -> Result<()> {
    let mut whole_path = false;
    for (key, value) in keys {
        let name = format!("{place}{key}");
        let file = |text: &str| folder.join(text);
        match (key.as_str(), value) {
            ("capabilities", value) => {
                host.capabilities =
                    texts(value, &name)?.iter().map(|text| capability(text, &name)).collect::<Result<_>>()?
            }
            ("ca", value) => host.ca = texts(value, &name)?.iter().map(|text| file(text)).collect(),
            ("client", Value::Array(pairs)) => {
                for pair in pairs {
                    host.clients.push(match (pair, texts(pair, &name)?.as_slice()) {
                        (Value::Array(_), [certificate, key]) => (file(certificate), Some(file(key))),
                        (_, [certificate]) => (file(certificate), None),
                        _ => return wrong(&name, "must be files, or pairs of certificate and key"),
                    });
                }
            }
            ("client", Value::String(certificate)) => host.clients.push((file(certificate), None)),
            ("skip_verify", Value::Boolean(skip)) => host.skip_verify = *skip,
            ("override_path", Value::Boolean(whole)) => whole_path = *whole,
            ("dial_timeout", Value::String(_)) => {} // ours is the same for connecting and for silence
            ("header", Value::Table(headers)) => {
                for (header, value) in headers {
                    host.headers.extend(texts(value, &name)?.into_iter().map(|value| (header.clone(), value)));
                }
            }
            _ => return wrong(&name, "is not known, or of another type"),
        }
    }
    let versioned = host.path.ends_with("/v2");
    if !whole_path && !versioned {
        host.path.push_str("/v2");
    }
    Ok(())
}

fn capability(text: &str, name: &str) -> Result<Capability> {
    match text {
        "pull" => Ok(Capability::Pull),
        "resolve" => Ok(Capability::Resolve),
        "push" => Ok(Capability::Push),
        _ => wrong(name, &format!("{text:?} is not pull, resolve or push")),
    }
}

/// A text, or a list of them.
fn texts(value: &Value, name: &str) -> Result<Vec<String>> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(list) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            list.iter().map(|value| text(value).map_or_else(|| wrong(name, "must be texts"), Ok)).collect()
        }
        _ => wrong(name, "must be a text or a list of texts"),
    }
}

fn wrong<T>(name: &str, why: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("{name} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(host: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(host)).unwrap();
        std::fs::write(root.path().join(host).join("hosts.toml"), text).unwrap();
        root
    }

    fn addresses(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|host| format!("{}://{}{}", host.scheme, host.authority, host.path)).collect()
    }

    #[test]
    fn mirrors_are_asked_in_the_order_of_the_file_and_the_server_last() {
        let root = folder(
            "docker.io",
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example/proxy"]
              capabilities = ["pull", "resolve"]
              ca = "z.crt"
              client = [["z.cert", "z.key"]]
              [host."https://z.example/proxy".header]
                x-a = ["1", "2"]
            [host."http://a.example:5000"]
              skip_verify = true
            [host."https://b.example/whole"]
              override_path = true
            "#,
        );
        let reference = Reference::parse("docker.io/library/x:1").unwrap();
        let hosts = servers(&reference, Some(root.path()), None).unwrap();
        let expected = [
            "https://z.example/proxy/v2",
            "http://a.example:5000/v2",
            "https://b.example/whole",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(addresses(&hosts), expected);
        assert_eq!(hosts[0].capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(hosts[0].ca, [root.path().join("docker.io/z.crt")]);
        assert_eq!(hosts[0].headers, [("x-a".into(), "1".into()), ("x-a".into(), "2".into())]);
        assert!(hosts[1].skip_verify && !hosts[0].skip_verify);
    }

    #[test]
    fn a_registry_without_a_folder_is_asked_itself() {
        for (name, scheme, expected) in [
            ("docker.io/library/x:1", None, "https://registry-1.docker.io/v2"),
            ("127.0.0.1:5000/x:1", None, "http://127.0.0.1:5000/v2"),
            ("quay.io/a/b:1", Some("http"), "http://quay.io/v2"),
        ] {
            let reference = Reference::parse(name).unwrap();
            let empty = tempfile::tempdir().unwrap();
            assert_eq!(addresses(&servers(&reference, Some(empty.path()), scheme).unwrap()), [expected]);
        }
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_file() {
        for (text, word) in [
            ("colour = 1", "colour"),
            ("server = 1", "server"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "\"fly\""),
            ("[host.\"ftp://a\"]", "ftp://a"),
            ("[host.\"https://u:p@a\"]", "must not hold a password"),
            ("= x", "hosts.toml"),
        ] {
            let root = folder("a.example_5000_", text);
            let reference = Reference::parse("a.example:5000/x:1").unwrap();
            let error = servers(&reference, Some(root.path()), None).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("a.example_5000_"), "{text}: {error}");
        }
    }
}
