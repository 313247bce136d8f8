//! All that a child will do, decided: every path a C string, every descriptor open, every attribute a number.
//!
//! The parent builds a plan from a checked bundle; [`crate::child`] walks it. Everything that can fail to parse, allocate
//! or be refused happens here, before the clone, and is told with its name.

mod cgroup_mount;
mod devices;
mod filesystem;
pub mod label;
mod list;
mod mounts;
mod namespaces;
mod process;
pub mod scheduling;

use std::cell::OnceCell;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use crate::mount::options::{Attributes, Depth, Options};
use crate::mount::root::{Missing, Target};
use crate::mount::tree::FileSystem;
use crate::seccomp;
use crate::sys::CStrArray;

pub use cgroup_mount::{CgroupView, bind_folders};
pub use filesystem::filesystem;
pub use label::Label;
pub use mounts::{clone_bind, is_bind};
pub use namespaces::{namespace_flag, namespace_kinds, namespaces};
pub use process::{Preserved, bounds, process, rlimit};
pub use scheduling::{Processors, Scheduling};

use crate::error::Failed;

/// What the first process of a container does.
#[derive(Debug)]
pub struct Plan {
    pub namespaces: Namespaces,
    /// v1 hierarchies to join: each is an open `tasks` file.
    pub cgroup_tasks: Vec<OwnedFd>,
    pub hostname: Option<CString>,
    pub domainname: Option<CString>,
    /// None where a mount namespace is joined, whose root it is then, or the host's.
    pub filesystem: Option<Filesystem>,
    /// The root file system of a container in the host's mount namespace, or in one that is joined and shows it.
    pub chroot: Option<Chroot>,
    pub sysctl: Vec<(CString, CString)>,
    pub terminal: Option<Terminal>,
    /// Whether runtime hooks run once the mounts are there.
    pub hooks_wait: bool,
    pub process: Process,
}

/// A root without mounts of its own.
#[derive(Debug)]
pub enum Chroot {
    Here(OwnedFd),
    /// Where it is in the namespace that is joined; if it is nowhere, that namespace's own root is the container's.
    There(CString),
}

impl Plan {
    /// Whether the child has to be answered before it comes to its gate.
    pub fn waits_before_gate(&self) -> bool {
        let listens = self.process.filter.as_ref().is_some_and(|filter| filter.listener.is_some());
        self.namespaces.mapped_later || self.hooks_wait || listens
    }
}

/// Namespaces to make with the clone, to make later, and to join.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW…` for clone3.
    pub new: u64,
    /// The child unshares it itself, once it is in its cgroups: a cgroup namespace is rooted where its maker is.
    pub new_cgroup: bool,
    /// In the order in which they are joined, each with its `CLONE_NEW…`; of a process (a pidfd), several at once.
    pub joined: Vec<(OwnedFd, u64)>,
    /// A PID namespace to join: the parent does it, since it counts for children only.
    pub pid: Option<OwnedFd>,
    /// Time offsets (`monotonic 5 0` a line) for a time namespace that the parent makes, for the same reason.
    pub time_offsets: Option<String>,
    /// Whether the child waits until its user namespace has its mappings.
    pub mapped_later: bool,
    /// Whether its network namespace is made aside and handed to the child, which waits for it.
    pub network_aside: bool,
}

impl Namespaces {
    /// Whether some are made that have to belong to a user namespace that is joined.
    pub fn new_in_joined_user_namespace(&self) -> bool {
        self.new != 0 && self.joined.iter().any(|(_, kinds)| kinds & libc::CLONE_NEWUSER as u64 != 0)
    }
}

/// The container's own view of files.
#[derive(Debug)]
pub struct Filesystem {
    /// A detached clone of the root file system.
    pub root: OwnedFd,
    /// Where it is attached before it becomes `/`.
    pub place: CString,
    pub readonly: bool,
    /// How mounts of the host come in before the root is changed.
    pub host_propagation: (u64, Depth),
    /// How the new `/` travels, if that was asked for.
    pub root_propagation: Option<(u64, Depth)>,
    pub mounts: Vec<Mount>,
    /// How many of them are the same in every network namespace.
    pub before_network: usize,
    pub nodes: Vec<Node>,
    pub links: Vec<(Target, CString)>,
    pub masked: Vec<Target>,
    pub read_only: Vec<Target>,
    /// MS_MOVE and chroot instead of pivot_root, for roots that cannot be pivoted from. The host's mounts stay below the
    /// container's then, so that those of proc and sysfs, listed here, have to go: while one is there, a user namespace
    /// inside may mount another, without any mask.
    pub no_pivot: Option<Vec<CString>>,
}

#[derive(Debug)]
pub struct Mount {
    pub target: Target,
    pub missing: Missing,
    /// The place must be a real folder: for proc and sysfs a link there is an attack (CVE-2023-27561).
    pub ordinary: bool,
    /// Whether it may lie in a procfs; a link in the root that leads another mount there is an attack.
    pub in_procfs: bool,
    pub what: What,
    pub propagation: Vec<(u64, Depth)>,
}

#[derive(Debug)]
pub enum What {
    /// A bind mount, cloned and adjusted by the parent.
    Tree(OwnedFd),
    /// A bind mount whose source lies in the container's root, where mounts before it may have put it.
    Inside(Inside),
    /// Made by the child, whose namespaces it shows.
    FileSystem(FileSystem),
    Tmpfs(Tmpfs),
    /// A change of what is mounted there already.
    Remount(Vec<(CString, Option<CString>)>, Attributes),
    /// Not a mount: a symbolic link to this.
    Link(CString),
}

impl What {
    /// Whether it may depend on the network namespace that it is made in, as sysfs does and anything might that we do not
    /// know.
    fn shows_network(&self) -> bool {
        const SAME_IN_ALL: &[&[u8]] = &[b"proc", b"devpts", b"mqueue", b"cgroup", b"cgroup2", b"bpf", b"overlay"];
        matches!(self, What::FileSystem(files) if !SAME_IN_ALL.contains(&files.kind.to_bytes()))
    }
}

#[derive(Debug)]
pub struct Inside {
    /// Relative to the root.
    pub source: CString,
    pub depth: Depth,
    pub options: Options,
    pub user_namespace: bool,
    pub id_map: Option<(OwnedFd, Depth)>,
}

/// A tmpfs may have to be filled before it becomes what it was asked to be.
#[derive(Debug)]
pub struct Tmpfs {
    /// Never read-only: others are mounted in it, and devices made.
    pub files: FileSystem,
    /// Whether its root has the permissions of the folder that it covers.
    pub mode_of_target: bool,
    /// Whether it begins with what lies in that folder.
    pub copy_up: bool,
    /// Set by the child where it becomes read-only once all mounts and devices are there.
    pub later: Option<OnceCell<OwnedFd>>,
}

/// A device, made by mknod or, where that is not allowed, by binding the host's.
#[derive(Debug)]
pub struct Node {
    pub target: Target,
    pub file_type: rustix::fs::FileType,
    pub mode: u32,
    pub device: u64,
    pub uid: u32,
    pub gid: u32,
    pub bound: Option<OwnedFd>,
}

/// Who gets the master side of a terminal.
#[derive(Debug)]
pub struct Receiver {
    pub socket: OwnedFd,
    /// The command itself, which copies, and not somebody who was named by `--console-socket`.
    pub ours: bool,
}

/// A terminal of the container's own.
#[derive(Debug)]
pub struct Terminal {
    pub receiver: Receiver,
    pub size: Option<(u16, u16)>,
    /// The first process's terminal is the container's /dev/console too.
    pub console: bool,
    pub console_target: Target,
}

/// What a process that is ready waits for.
#[derive(Debug)]
pub enum Gate {
    /// Its parent, which is still there: `run`, `exec`.
    Parent,
    /// `tare start`, at another time: a byte in `gate` lets it through, what fails afterwards is told in `result`.
    Fifo { gate: OwnedFd, result: OwnedFd },
}

/// From "inside the container, as root" to the program: the same for the first process and for `exec`.
#[derive(Debug)]
pub struct Process {
    pub cwd: CString,
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
    /// None where setgroups is denied.
    pub groups: Option<Vec<rustix::process::Gid>>,
    pub capabilities: Option<Capabilities>,
    pub no_new_privileges: bool,
    pub filter: Option<seccomp::Program>,
    pub personality: Option<u64>,
    pub scheduling: Scheduling,
    pub labels: Vec<Label>,
    /// Set by the process itself, before it gives anything up. Empty where a new user namespace has taken the right to
    /// raise them: then the parent sets them while the child waits for its mappings.
    pub rlimits: Vec<(rustix::process::Resource, rustix::process::Rlimit)>,
    /// A new session keyring of this name.
    pub keyring: Option<CString>,
    /// The paths to try, in order; the first that is a program wins.
    pub candidates: Vec<CString>,
    pub argv: CStrArray,
    pub environment: CStrArray,
    /// The first descriptor that the program does not get.
    pub first_closed: i32,
    /// Standard input, and what is both output and error, if they are not the caller's.
    pub stdio: Option<(OwnedFd, OwnedFd)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// `linux.rootfsPropagation` as a kind and a depth; empty is the default, and anything else is none.
pub fn propagation(word: &str) -> Option<Option<(u64, Depth)>> {
    use crate::mount::options::{PRIVATE, SHARED, SLAVE, UNBINDABLE};
    let kind = match word.strip_prefix('r').unwrap_or(word) {
        "" => return (word.is_empty()).then_some(None),
        "shared" => SHARED,
        "slave" => SLAVE,
        "private" => PRIVATE,
        "unbindable" => UNBINDABLE,
        _ => return None,
    };
    Some(Some((kind, if word.starts_with('r') { Depth::WithAllBelow } else { Depth::Alone })))
}

/// `linux.personality.domain` as a number. Source: personality(2).
pub fn personality(domain: &str) -> Option<u64> {
    match domain {
        "LINUX" => Some(0),
        "LINUX32" => Some(8),
        _ => None,
    }
}

/// A string for the kernel, or the field that has a zero byte in it.
pub fn c_string(field: &str, text: &str) -> Result<CString, Failed> {
    CString::new(text)
        .map_err(|_| Failed { doing: format!("{field}: {text:?} has a zero byte"), errno: rustix::io::Errno::INVAL })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::options::{PRIVATE, SLAVE};

    #[test]
    fn propagation_has_a_kind_and_a_depth() {
        assert_eq!(propagation(""), Some(None));
        assert_eq!(propagation("rslave"), Some(Some((SLAVE, Depth::WithAllBelow))));
        assert_eq!(propagation("private"), Some(Some((PRIVATE, Depth::Alone))));
        assert_eq!(propagation("r"), None);
        assert_eq!(propagation("sharing"), None);
    }
}
