//! What an entry says of itself, checked before anything is made.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, Timespec, Timestamps};
use rustix::process::{Gid, Uid};

use crate::error::{Doing as _, Error, Result};

/// Owner, mode, times and extended attributes.
pub struct Looks {
    pub uid: Uid,
    pub gid: Gid,
    pub mode: Mode,
    pub times: Timestamps,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Looks {
    /// # Errors
    /// An owner that is none; extensions that are malformed, said twice or unknown in a way that would show another reader
    /// of archives other files (CVE-2025-62518 and its kin).
    pub fn of<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<Looks> {
        let header = entry.header();
        let fields = header.as_old();
        let (Some(uid), Some(gid)) = (owner(&fields.uid, header.uid()), owner(&fields.gid, header.gid())) else {
            return refused(path, "its owner is not a user or group id");
        };
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777);
        let seconds = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
        let mut time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut attributes = Vec::new();
        let mut seen = HashSet::new();
        let doing = || format!("reading the extensions of {}", path.display());
        for extension in entry.pax_extensions().doing(doing)?.into_iter().flatten() {
            let extension = extension.doing(doing)?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            if !seen.insert(key.to_vec()) {
                return refused(path, &format!("it says {} twice", String::from_utf8_lossy(key)));
            }
            if key == b"mtime" {
                match seconds_of(value) {
                    Some(given) => time = given,
                    None => return refused(path, "its mtime is not a time"),
                }
            } else if key.starts_with(b"GNU.sparse.") {
                return refused(path, "sparse files in pax form are not supported");
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| allowed(name)) {
                attributes.push((name.to_vec(), value.to_vec()));
            }
        }
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(Looks { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), mode, times, attributes })
    }
}

/// A field that is empty means 0: every reader of archives takes it so.
fn owner(field: &[u8], read: std::io::Result<u64>) -> Option<u32> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Some(0);
    }
    u32::try_from(read.ok()?).ok().filter(|id| *id != u32::MAX)
}

/// Attributes that an image may set: file capabilities and the user's own, nothing that overlayfs or a security module
/// reads.
fn allowed(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Seconds with a fraction, as pax writes times. Source: pax(1), "mtime".
fn seconds_of(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: i64 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(match whole.starts_with('-') && nanos > 0 {
        true => Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos },
        false => Timespec { tv_sec: seconds, tv_nsec: nanos },
    })
}

/// A path without a leading slash and dots.
///
/// # Errors
/// It leads out.
pub fn cleaned(path: &Path) -> Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return refused(path, "leads out of the layer"),
        }
    }
    Ok(cleaned)
}

/// # Errors
/// It has none.
pub fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf> {
    let target = entry.link_name().doing(|| format!("reading the link {}", path.display()))?;
    target.map_or_else(|| refused(path, "a link without a target"), |target| Ok(target.into_owned()))
}

/// # Errors
/// Always.
pub fn refused<T>(path: &Path, why: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("the layer's entry {}: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds_on_both_sides_of_1970() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.0000000019", Some((12, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("", None),
            ("1.x", None),
            ("1e3", None),
        ] {
            assert_eq!(seconds_of(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec)), expected, "{text}");
        }
    }

    #[test]
    fn overlayfs_and_security_modules_are_not_spoken_to() {
        for good in ["security.capability", "user.mime"] {
            assert!(allowed(good.as_bytes()), "{good}");
        }
        for bad in ["trusted.overlay.opaque", "user.overlay.redirect", "security.selinux", "system.posix_acl_access"] {
            assert!(!allowed(bad.as_bytes()), "{bad}");
        }
    }
}
