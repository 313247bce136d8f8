//! What an entry says of itself, checked before anything is made.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{Timespec, Timestamps};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Folder,
    Fifo,
}

/// One entry. Paths are as the archive has them: [`cleaned`] makes them safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
    /// Where a link leads.
    pub link: PathBuf,
    /// Of a file's content, its holes included.
    pub size: u64,
    /// Which parts of a file the archive has, if it leaves out holes: offset and length.
    pub parts: Option<Vec<(u64, u64)>>,
    pub uid: u32,
    pub gid: u32,
    /// Permissions alone.
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub time: (i64, u32),
    /// Major and minor number.
    pub device: (u32, u32),
    /// Extended attributes that an image may have, in the order of their names.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    pub fn new(path: PathBuf, kind: Kind) -> Entry {
        Entry {
            path,
            kind,
            link: PathBuf::new(),
            size: 0,
            parts: None,
            uid: 0,
            gid: 0,
            mode: 0,
            time: (0, 0),
            device: (0, 0),
            attributes: Vec::new(),
        }
    }

    pub fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.time.0, tv_nsec: self.time.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Attributes that an image may set: file capabilities, access lists and the user's own, nothing that overlayfs or a
/// security module reads.
pub fn allowed(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Seconds with a fraction, as pax writes times. Source: pax(1), "mtime".
pub fn time_of(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(match whole.starts_with('-') && nanos > 0 {
        true => (seconds.checked_sub(1)?, 1_000_000_000 - nanos),
        false => (seconds, nanos),
    })
}

/// The way back.
pub fn time_text((seconds, nanos): (i64, u32)) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}").trim_end_matches('0').to_owned(),
        (..0, _) => {
            let text = format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos);
            text.trim_end_matches('0').to_owned()
        }
    }
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
/// Always.
pub fn refused<T>(path: &Path, why: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("the archive's entry {}: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds_on_both_sides_of_1970() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.000000001", Some((12, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("", None),
            ("1.x", None),
            ("1e3", None),
        ] {
            let read = time_of(text.as_bytes());
            assert_eq!(read, expected, "{text}");
            if let Some(time) = read {
                assert_eq!(time_text(time), text);
            }
        }
        assert_eq!(time_of(b"12.0000000019"), Some((12, 1)), "what is finer is cut");
    }

    #[test]
    fn overlayfs_and_security_modules_are_not_spoken_to() {
        for good in ["security.capability", "user.mime", "system.posix_acl_access"] {
            assert!(allowed(good.as_bytes()), "{good}");
        }
        for bad in ["trusted.overlay.opaque", "user.overlay.redirect", "security.selinux", "system.nfs4_acl"] {
            assert!(!allowed(bad.as_bytes()), "{bad}");
        }
    }
}
