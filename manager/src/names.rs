//! Names from outside, checked once: whatever has one of these types cannot leave its folder or its row.

use std::collections::HashMap;
use std::fmt;

use crate::error::{Error, Result};

/// Longest identifier. Source: containerd pkg/identifiers.
const LONGEST: usize = 76;

/// Checks an identifier: groups of letters and digits, joined by single `.`, `_` or `-`.
///
/// # Errors
/// `InvalidArgument`.
fn identifier(text: &str) -> Result<&str> {
    let groups =
        |text: &str| text.split(['.', '_', '-']).all(|g| !g.is_empty() && g.bytes().all(|b| b.is_ascii_alphanumeric()));
    if text.is_empty() {
        return Err(Error::InvalidArgument("identifier must not be empty".into()));
    }
    if text.len() > LONGEST {
        return Err(Error::InvalidArgument(format!(
            "identifier {text:?} greater than maximum length ({LONGEST} characters)"
        )));
    }
    if !groups(text) {
        return Err(Error::InvalidArgument(format!(
            "identifier {text:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
        )));
    }
    Ok(text)
}

/// containerd's tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

impl Namespace {
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Namespace> {
        Ok(Namespace(identifier(text)?.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A container's, task's or exec's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Id> {
        Ok(Id(identifier(text)?.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lease's name: clients make up their own (`946033740-_am2`), and it is never a path, only part of a row's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(String);

impl LeaseId {
    /// # Errors
    /// `InvalidArgument`: nothing, too much, or what does not print.
    pub fn parse(text: &str) -> Result<LeaseId> {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
            return Err(Error::InvalidArgument(format!(
                "lease id {text:.100?} must have 1 to 256 printable characters"
            )));
        }
        Ok(LeaseId(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a digest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Of a digest, in hexadecimal digits.
    fn length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha384 => 96,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A digest in the making.
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Digest::new()),
            Algorithm::Sha384 => Hasher::Sha384(sha2::Digest::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Digest::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => sha2::Digest::update(hash, bytes),
            Hasher::Sha384(hash) => sha2::Digest::update(hash, bytes),
            Hasher::Sha512(hash) => sha2::Digest::update(hash, bytes),
        }
    }

    /// Of what was added until now.
    pub fn digest(&self) -> Digest {
        match self {
            Hasher::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &sha2::Digest::finalize(hash.clone())),
            Hasher::Sha384(hash) => Digest::from_hash(Algorithm::Sha384, &sha2::Digest::finalize(hash.clone())),
            Hasher::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &sha2::Digest::finalize(hash.clone())),
        }
    }
}

/// `sha256:` and 64 hexadecimal digits, or `sha384:` or `sha512:` and theirs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// # Errors
    /// `InvalidArgument`: another algorithm, or not of its length.
    pub fn parse(text: &str) -> Result<Digest> {
        let (name, hex) = text
            .split_once(':')
            .ok_or_else(|| Error::InvalidArgument(format!("invalid checksum digest format {text:?}")))?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        let algorithm = algorithm.ok_or_else(|| {
            Error::InvalidArgument(format!(
                "unsupported digest algorithm {name:?}: sha256, sha384 and sha512 are known"
            ))
        })?;
        if hex.len() != algorithm.length() || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(Error::InvalidArgument(format!("invalid checksum digest {text:?}")));
        }
        Ok(Digest(text.to_owned()))
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Digest {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest(format!("{}:{hex}", algorithm.name()))
    }

    /// Of a finished SHA-256.
    pub fn of_hash(hash: &[u8]) -> Digest {
        Digest::from_hash(Algorithm::Sha256, hash)
    }

    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::of_hash(&<sha2::Sha256 as sha2::Digest>::digest(bytes))
    }

    /// Of other bytes, in the way of this one: the same if the bytes are.
    pub fn same_kind(&self, bytes: &[u8]) -> Digest {
        let mut hash = Hasher::new(self.algorithm());
        hash.update(bytes);
        hash.digest()
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.0.as_bytes() {
            [b's', b'h', b'a', b'3', ..] => Algorithm::Sha384,
            [b's', b'h', b'a', b'5', ..] => Algorithm::Sha512,
            _ => Algorithm::Sha256,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..] // the other names are as long
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub type Labels = HashMap<String, String>;

/// Checks sizes: a key and its value have at most 4096 bytes together.
///
/// # Errors
/// `InvalidArgument`, naming the key.
pub fn check_labels(labels: &Labels) -> Result<()> {
    match labels.iter().find(|(key, value)| key.len() + value.len() > 4096) {
        Some((key, _)) => Err(Error::InvalidArgument(format!(
            "label key and value length greater than maximum size (4096 bytes), key: {:.10}",
            key
        ))),
        None => Ok(()),
    }
}

/// Changes labels as an update asks: all of them, or those that the mask names; an empty value takes a label away.
///
/// # Errors
/// `InvalidArgument`: a path that is not of labels.
pub fn update_labels(labels: &mut Labels, given: &Labels, mask: &[String]) -> Result<()> {
    check_labels(given)?;
    if mask.is_empty() || mask.iter().any(|path| path == "labels") {
        labels.clone_from(given);
    } else {
        for path in mask {
            let key = path
                .strip_prefix("labels.")
                .ok_or_else(|| Error::InvalidArgument(format!("cannot update {path} field")))?;
            match given.get(key) {
                Some(value) => labels.insert(key.to_owned(), value.clone()),
                None => labels.remove(key),
            };
        }
    }
    labels.retain(|_, value| !value.is_empty());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_groups_joined_by_single_separators() {
        for good in ["default", "k8s.io", "a-b_c.d", "0"] {
            assert!(identifier(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "a/b", "../x", "ä", &"x".repeat(77)] {
            assert!(identifier(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lease_is_named_as_clients_like() {
        for good in ["946033740-_am2", "a b", "ä"] {
            assert_eq!(LeaseId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a\0b", "a\nb", &"x".repeat(257)] {
            assert!(LeaseId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_cannot_be_a_path() {
        assert!(Digest::parse(&format!("sha256:{}", "a".repeat(64))).is_ok());
        for algorithm in Algorithm::ALL {
            let digest = Hasher::new(algorithm).digest();
            assert_eq!(Digest::parse(digest.as_str()).unwrap().algorithm(), algorithm);
            assert_eq!(digest.hex().len(), algorithm.length());
            assert_eq!(digest.same_kind(b""), digest);
        }
        for bad in [
            &format!("sha512:{}", "a".repeat(64)),
            "",
            "sha256:",
            "sha256:../..",
            "md5:00",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:{}/", "a".repeat(63)),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_update_changes_what_its_mask_names() {
        let mut labels = Labels::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        let given = Labels::from([("a".into(), String::new()), ("c.d".into(), "3".into())]);
        update_labels(&mut labels, &given, &["labels.a".into(), "labels.c.d".into()]).unwrap();
        assert_eq!(labels, Labels::from([("b".into(), "2".into()), ("c.d".into(), "3".into())]));
        assert!(update_labels(&mut labels, &given, &["size".into()]).is_err());
    }
}
