//! A mount's options, taken apart: what is a flag, what is for the file system, and what is for us.
//!
//! Source: mount(8); containerd `core/mount`, for `loop`, `uidmap` and `gidmap`.

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::Error;
use super::idmap::IdMap;

/// Options that set or clear a flag; the rest is for the file system. Source: mount(8).
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("bind", MountFlags::BIND, true),
    ("defaults", MountFlags::empty(), true),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("rbind", MountFlags::BIND.union(MountFlags::REC), true),
    ("relatime", MountFlags::RELATIME, true),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

/// An option list, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub flags: MountFlags,
    pub propagation: Option<MountPropagationFlags>,
    /// The source is a file, to be seen as a block device.
    pub is_loop: bool,
    /// Without the page cache of the file below: only with [`Parsed::is_loop`].
    pub direct: bool,
    /// Files are to be owned by other ids than the layers say.
    pub ids: Option<IdMap>,
    pub data: Vec<&'a str>,
}

impl Parsed<'_> {
    /// # Errors
    /// An option that is not understood, or is one half of two.
    pub fn new(options: &[String]) -> Result<Parsed<'_>, Error> {
        let mut parsed = Parsed {
            flags: MountFlags::empty(),
            propagation: None,
            is_loop: options.iter().any(|option| option == "loop"),
            direct: false,
            ids: None,
            data: Vec::new(),
        };
        let mut maps = (None, None);
        for option in options {
            if let Some((_, flag, set)) = FLAGS.iter().find(|(word, ..)| word == option) {
                parsed.flags.set(*flag, *set);
            } else if let Some((_, change)) = PROPAGATION.iter().find(|(word, _)| word == option) {
                parsed.propagation = Some(*change);
            } else if let Some(map) = option.strip_prefix("uidmap=") {
                maps.0 = Some(map);
            } else if let Some(map) = option.strip_prefix("gidmap=") {
                maps.1 = Some(map);
            } else if parsed.is_loop && option == "direct-io" {
                parsed.direct = true;
            } else if option != "loop" && !option.starts_with("X-") && !option.starts_with("x-") {
                parsed.data.push(option); // mount(8): names with x- are comments for programs
            }
        }
        parsed.ids = match maps {
            (Some(uids), Some(gids)) => Some(IdMap::parse(uids, gids)?),
            (None, None) => None,
            (Some(uids), None) => return Err(Error::OneMap(format!("uidmap={uids}"), "gidmap")),
            (None, Some(gids)) => return Err(Error::OneMap(format!("gidmap={gids}"), "uidmap")),
        };
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_told_apart() {
        let options = words("rw nosuid lowerdir=/a:/b rslave X-containerd.test=1 uidmap=0:1:2 gidmap=0:3:4");
        let parsed = Parsed::new(&options).unwrap();
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.data, ["lowerdir=/a:/b"]);
        assert!(parsed.propagation.is_some() && !parsed.is_loop);
        assert_eq!(parsed.ids, Some(IdMap::parse("0:1:2", "0:3:4").unwrap()));
        let options = words("direct-io loop ro");
        let parsed = Parsed::new(&options).unwrap();
        assert!(parsed.is_loop && parsed.direct && parsed.data.is_empty());
        assert_eq!(Parsed::new(&words("direct-io")).unwrap().data, ["direct-io"], "a file system's own");
    }

    #[test]
    fn half_a_mapping_is_refused_by_name() {
        let error = Parsed::new(&words("ro uidmap=0:1:2")).unwrap_err().to_string();
        assert_eq!(error, "rootfs option \"uidmap=0:1:2\" needs gidmap beside it");
    }
}
