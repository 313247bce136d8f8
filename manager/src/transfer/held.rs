//! A lease of our own for the time of one transfer: what it makes is held before it is made.

use std::time::{Duration, SystemTime};

use tare_proto::containerd::services::leases::v1::Lease;

use super::Transfers;
use crate::content::Content;
use crate::error::{Error, Result};
use crate::gc;
use crate::identity;
use crate::names::{Digest, Labels, Namespace};
use crate::store::{Store, kind};

/// A daemon that is killed leaves its leases; they end at the next start, or by themselves.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Says of a lease that it is one of ours.
const OURS: &str = "tare.transfer";

pub struct Held {
    store: Store,
    content: Content,
    pub namespace: Namespace,
    pub lease: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = gc::release(&self.store, &self.namespace, &self.lease) {
            tracing::warn!("ending the lease {} of a transfer: {error}; it expires in a day", self.lease);
        }
    }
}

impl Transfers {
    /// Ends the leases of transfers that were under way when the daemon was killed. For the start, when none is.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn recover(&self) -> Result<()> {
        for namespace in self.store.namespaces()? {
            for (id, lease) in self.store.list::<Lease>(kind::LEASE, &namespace)? {
                if lease.labels.contains_key(OURS) {
                    gc::release(&self.store, &namespace, &id)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn hold(&self, namespace: &Namespace) -> Result<Held> {
        let lease = format!("transfer-{}", identity::random()?);
        let labels = Labels::from([gc::expires_after(LIFE), (OURS.into(), "true".into())]);
        let row = Lease { id: lease.clone(), created_at: Some(SystemTime::now().into()), labels };
        self.store.change(|rows| rows.put(kind::LEASE, namespace, &lease, &row))?;
        Ok(Held { store: self.store.clone(), content: self.content.clone(), namespace: namespace.clone(), lease })
    }
}

impl Held {
    pub fn things(&self, things: &[(&str, String)]) -> Result<()> {
        gc::hold(&self.store, &self.namespace, &self.lease, things)
    }

    /// Whether a blob is here, or can be had from another namespace; held if so.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn has(&self, digest: &Digest, labels: &Labels) -> Result<bool> {
        self.things(&[gc::content(digest)])?;
        match self.content.info(&self.namespace, digest) {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => match self.content.adopt(&self.namespace, digest, labels) {
                Err(Error::AlreadyExists(_)) => Ok(true), // somebody was faster
                answer => answer,
            },
            Err(error) => Err(error),
        }
    }

    /// Keeps bytes that are in memory as a blob; one that is there gets the labels.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, digest: &Digest, bytes: &[u8], labels: &Labels) -> Result<()> {
        if self.has(digest, labels)? {
            return self.relabel(digest, labels);
        }
        let reference = format!("{}-{digest}", self.lease);
        let mut writer = match self.content.writer(&self.namespace, &reference, bytes.len() as u64, Some(digest)) {
            Err(Error::AlreadyExists(_)) => return self.relabel(digest, labels),
            writer => writer?,
        };
        writer.restart()?;
        writer.write(bytes)?;
        match writer.commit(bytes.len() as u64, Some(digest), labels) {
            Err(Error::AlreadyExists(_)) => self.relabel(digest, labels),
            answer => answer.map(|_| ()),
        }
    }

    /// # Errors
    /// `NotFound`.
    pub fn relabel(&self, digest: &Digest, more: &Labels) -> Result<()> {
        if more.is_empty() {
            return Ok(());
        }
        self.content.update(&self.namespace, digest, |labels| {
            for (key, value) in more {
                let known = labels.entry(key.clone()).or_default();
                *known = if key.starts_with(SOURCE) { both(known, value) } else { value.clone() };
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Says of a blob in which repositories of a registry it lies.
pub const SOURCE: &str = "containerd.io/distribution.source.";

/// The label for a registry: clients look for it by the host's name alone, whatever its port.
pub fn source_key(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    format!("{SOURCE}{}", name.trim_start_matches('[').trim_end_matches(']'))
}

/// Lists of repositories, as one.
fn both(one: &str, other: &str) -> String {
    let all = one.split(',').chain(other.split(',')).filter(|part| !part.is_empty());
    all.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",")
}
