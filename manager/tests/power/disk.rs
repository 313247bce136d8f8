//! What a disk holds when its power is cut after some of the recorded steps.
//!
//! What was synced is there. The rest is in one of several states, each of which some file system leaves: see [`Lost`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

/// One change, in the order in which calls ended.
#[derive(Debug)]
pub enum Step {
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Length {
        inode: u64,
        length: u64,
    },
    /// What was at a path after a call that changed its name, or what is said of it.
    Name {
        path: PathBuf,
        found: Option<Found>,
    },
    /// A file's bytes, or a folder's names, as of the steps before the call began.
    Sync {
        inode: u64,
        folder: Option<PathBuf>,
        before: usize,
    },
    SyncAll {
        before: usize,
    },
    /// What the process has told its client.
    Told(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub inode: u64,
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub attributes: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link(PathBuf),
    /// A character device: overlayfs's removals are 0:0.
    Device(u64),
}

impl Found {
    pub fn at(path: &Path) -> Option<Found> {
        let there = fs::symlink_metadata(path).ok()?;
        let kind = match there.file_type() {
            kind if kind.is_dir() => Kind::Folder,
            kind if kind.is_symlink() => Kind::Link(fs::read_link(path).ok()?),
            kind if kind.is_char_device() => Kind::Device(there.rdev()),
            kind => {
                assert!(kind.is_file(), "{} is a {kind:?}, which is not understood", path.display());
                Kind::File
            }
        };
        let (mode, owner) = (there.mode() & 0o7777, (there.uid(), there.gid()));
        Some(Found { inode: there.ino(), kind, mode, owner, attributes: attributes(path) })
    }
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return BTreeMap::new() };
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let value = |name: &str| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
        value.truncate(length);
        Some((name.to_owned(), value))
    };
    names.split_terminator('\0').filter_map(value).collect()
}

/// What of the steps that were not synced has not reached the disk.
#[derive(Debug, Clone, Copy)]
pub enum Lost {
    /// Nothing: only the process was killed.
    Nothing,
    /// Bytes, of files whose names are there: names go by a journal, and bytes are written when there is time.
    Bytes,
    /// Bytes and names: whatever nobody has waited for.
    All,
    /// Names from some moment on, and every other write, told by this number.
    Some(u64),
}

impl Lost {
    fn keeps_write(self, n: usize) -> bool {
        match self {
            Lost::Nothing => true,
            Lost::Bytes | Lost::All => false,
            Lost::Some(seed) => !mixed(seed ^ n as u64).is_multiple_of(2),
        }
    }

    fn keeps_name(self, n: usize, cut: usize) -> bool {
        match self {
            Lost::Nothing | Lost::Bytes => true,
            Lost::All => false,
            Lost::Some(seed) => (n as u64) < mixed(seed) % (cut as u64 + 1),
        }
    }
}

/// A number that looks like chance and is always the same.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let number = (number ^ (number >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ (number >> 33)
}

/// Steps before which a file's bytes, or a folder's names, are on the disk.
#[derive(Default)]
struct Synced {
    all: usize,
    bytes: HashMap<u64, usize>,
    names: HashMap<PathBuf, usize>,
}

impl Synced {
    fn of(steps: &[Step], place: &Path) -> Synced {
        let mut synced = Synced::default();
        for step in steps {
            match step {
                Step::SyncAll { before } => synced.all = *before,
                Step::Sync { folder: None, inode, before } => _ = synced.bytes.insert(*inode, *before),
                Step::Sync { folder: Some(folder), before, .. } => {
                    // A folder that is on the disk can be reached there.
                    let folder = folder.strip_prefix(place).unwrap();
                    synced.names.insert(folder.to_owned(), *before);
                    for above in folder.ancestors().skip(1) {
                        let most = synced.names.entry(above.to_owned()).or_default();
                        *most = (*most).max(*before);
                    }
                }
                _ => {}
            }
        }
        synced
    }

    fn has_write(&self, inode: u64, n: usize) -> bool {
        n < self.all || self.bytes.get(&inode).is_some_and(|before| n < *before)
    }

    fn has_name(&self, path: &Path, n: usize) -> bool {
        n < self.all || path.parent().and_then(|folder| self.names.get(folder)).is_some_and(|before| n < *before)
    }
}

/// Puts into `dir` what the disk holds after these steps, which were recorded at `place`.
pub fn rebuild(steps: &[Step], place: &Path, lost: Lost, dir: &Path) {
    let synced = Synced::of(steps, place);
    let (mut names, mut bytes) = (BTreeMap::<&Path, &Found>::new(), HashMap::<u64, Vec<u8>>::new());
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Name { path, found } if synced.has_name(path, n) || lost.keeps_name(n, steps.len()) => match found {
                Some(found) => _ = names.insert(path, found),
                None => _ = names.remove(path.as_path()),
            },
            Step::Write { inode, offset, bytes: written } if synced.has_write(*inode, n) || lost.keeps_write(n) => {
                let (file, offset) = (bytes.entry(*inode).or_default(), usize::try_from(*offset).unwrap());
                file.resize(file.len().max(offset + written.len()), 0);
                file[offset..offset + written.len()].copy_from_slice(written);
            }
            Step::Length { inode, length } if synced.has_write(*inode, n) || lost.keeps_write(n) => {
                bytes.entry(*inode).or_default().resize(usize::try_from(*length).unwrap(), 0);
            }
            _ => {}
        }
    }
    let mut made = HashMap::new();
    let mut gone = HashSet::new(); // what lies in a folder that is not there is not there either
    for (path, found) in names {
        let at = dir.join(path);
        if !at.parent().is_some_and(Path::is_dir) || path.ancestors().any(|above| gone.contains(above)) {
            gone.insert(path);
            continue;
        }
        match &found.kind {
            Kind::Folder => fs::create_dir(&at).unwrap(),
            Kind::Link(target) => symlink(target, &at).unwrap(),
            Kind::Device(number) => {
                let kind = rustix::fs::FileType::CharacterDevice;
                rustix::fs::mknodat(rustix::fs::CWD, &at, kind, found.mode.into(), *number).unwrap();
            }
            Kind::File => match made.get(&found.inode) {
                Some(other) => fs::hard_link(other, &at).unwrap(),
                None => {
                    let file = fs::File::create(&at).unwrap();
                    file.write_all_at(bytes.get(&found.inode).map_or(&[][..], Vec::as_slice), 0).unwrap();
                    made.insert(found.inode, at.clone());
                }
            },
        }
        lchown(&at, Some(found.owner.0), Some(found.owner.1)).unwrap();
        if !matches!(found.kind, Kind::Link(_)) {
            fs::set_permissions(&at, fs::Permissions::from_mode(found.mode)).unwrap();
        }
        for (name, value) in &found.attributes {
            rustix::fs::lsetxattr(&at, name.as_str(), value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}
