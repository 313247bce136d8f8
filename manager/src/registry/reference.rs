//! An image's name: `host[:port]/repository[:tag][@digest]`.

use crate::error::{Error, Result};
use crate::names::Digest;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub host: String,
    pub repository: String,
    /// Empty if there is only a digest.
    pub tag: String,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a full reference, as clients of containerd send it.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Reference> {
        let wrong = |why: &str| Error::InvalidArgument(format!("image reference {text:?}: {why}"));
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (host, path) = name.split_once('/').ok_or_else(|| wrong("has no host"))?;
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, tag),
            None => (path, ""),
        };
        let host_ok = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let part_ok = |part: &str| {
            let ends = part.bytes().next().is_some_and(plain) && part.bytes().next_back().is_some_and(plain);
            ends && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
        };
        let tag_ok = tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !host_ok || !repository.split('/').all(part_ok) || !tag_ok || path.ends_with(':') {
            return Err(wrong("is not HOST/NAME:TAG"));
        }
        if tag.is_empty() && digest.is_none() {
            return Err(wrong("has neither tag nor digest"));
        }
        Ok(Reference { host: host.into(), repository: repository.into(), tag: tag.into(), digest })
    }

    /// Completes what a person types, as docker does: `busybox` is `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn complete(text: &str) -> Result<String> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let first = name.split('/').next().unwrap_or_default();
        let has_host = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
        let mut full = match (has_host, name.contains('/')) {
            (true, _) => name.to_owned(),
            (false, true) => format!("docker.io/{name}"),
            (false, false) => format!("docker.io/library/{name}"),
        };
        let tagged = full.rsplit('/').next().is_some_and(|last| last.contains(':'));
        match digest {
            Some(digest) => full = format!("{full}@{digest}"),
            None if !tagged => full += ":latest",
            None => {}
        }
        Reference::parse(&full)?;
        Ok(full)
    }

    /// What the registry knows it by: the digest if there is one, else the tag.
    pub fn object(&self) -> &str {
        self.digest.as_ref().map_or(&self.tag, |digest| digest.as_str())
    }
}

/// Whether a host, with or without a port, is this machine.
pub fn is_local(authority: &str) -> bool {
    let bare = authority.trim_start_matches('[').split(']').next().unwrap_or_default(); // [::1]:5000
    let host = match authority.starts_with('[') {
        true => bare,
        false => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) // 127.example is somebody's name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_types_is_completed_as_docker_does() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b"),
            ("quay.io/a/b", "quay.io/a/b:latest"),
        ] {
            assert_eq!(Reference::complete(text).unwrap(), full);
        }
    }

    #[test]
    fn no_reference_is_a_path_elsewhere() {
        for bad in ["", "a", "h/../x:1", "h/a b:1", "h/A:1", "h/a:", "h/a:t/../x", "h//a:1", "h/a@sha256:zz", "h?x/a:1"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        let parsed = Reference::parse("127.0.0.1:5000/a/b:1.0").unwrap();
        assert_eq!(
            (parsed.host.as_str(), parsed.repository.as_str(), parsed.tag.as_str()),
            ("127.0.0.1:5000", "a/b", "1.0")
        );
        for (host, local) in [
            ("127.0.0.1:5000", true),
            ("localhost", true),
            ("[::1]:5000", true),
            ("127.0.0.1.example:5000", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_local(host), local, "{host}");
        }
    }
}
