//! Children that do not become a container's process: CRIU, which makes one from images, and one that prepares a root
//! for it. In a mount namespace of their own where they mount anything, so that nothing of it has to be undone.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::report::{self, Step, Stuck, at, nth};
use super::{Init, Report};
use crate::error::{Doing as _, Failed};
use crate::mount::root::{Missing, Target};
use crate::mount::tree;
use crate::sys::{self, CStrArray, Cloned};

/// A program that talks to us over a descriptor which it is told the number of.
pub struct Program {
    pub path: CString,
    pub argv: CStrArray,
    pub environment: CStrArray,
    /// Standard input, output and error, if they are not to be ours.
    pub stdio: Option<OwnedFd>,
}

impl Program {
    /// # Errors
    /// The kernel refused the clone, the mount, or the program.
    pub fn start(&self) -> Result<Init, Failed> {
        let init = start(0, |_| self.walk())?;
        let what = || self.path.to_string_lossy().into_owned();
        match init.next()? {
            None => Ok(init),
            Some(Report::Stuck(stuck)) => Err(stuck.errno).doing(|| format!("starting {}", what())),
            Some(Report::Waits(..)) => Err(Errno::PROTO).doing(|| format!("starting {}", what())),
        }
    }

    /// Between clone and exec: no allocation.
    fn walk(&self) -> Result<Infallible, Stuck> {
        at(Step::Signals, sys::reset_signals())?;
        if let Some(file) = &self.stdio {
            for number in 0..3 {
                at(Step::Descriptors, sys::dup_to(file.as_fd(), number))?;
            }
        }
        at(Step::Exec, sys::execve(&self.path, &self.argv, &self.environment))
    }
}

/// A place that has to be there before anything is mounted on it.
pub struct Point {
    pub target: Target,
    pub missing: Missing,
    /// What will lie there: a place below it is looked for in there.
    pub tree: Option<OwnedFd>,
}

/// Makes the places in `root` that are missing, in order.
///
/// # Errors
/// One cannot be made.
pub fn make_points(root: &CStr, points: &[Point]) -> Result<(), Failed> {
    let init = start(libc::CLONE_NEWNS as u64, |_| walk_points(root, points))?;
    match init.next()? {
        None => Ok(()),
        Some(Report::Stuck(Stuck { index, errno, .. })) => {
            let path = points.get(usize::from(index)).map(|point| point.target.path().to_string_lossy());
            Err(errno).doing(|| format!("making the mount point /{}", path.unwrap_or_default()))
        }
        Some(Report::Waits(..)) => Err(Errno::PROTO).doing(|| "making mount points".into()),
    }
}

fn walk_points(root: &CStr, points: &[Point]) -> Result<Infallible, Stuck> {
    at(Step::HostPropagation, stay_inside())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = at(Step::Root, openat(CWD, root, flags, Mode::empty()))?;
    for (index, point) in (0u16..).zip(points) {
        let (place, _) = nth(Step::MountPoint, index, point.target.reach(root.as_fd(), point.missing))?;
        if let Some(tree) = &point.tree {
            nth(Step::Mount, index, tree::attach(tree.as_fd(), place.as_fd()))?;
        }
    }
    sys::exit(0)
}

/// What is mounted in this namespace from now on stays in it.
fn stay_inside() -> Result<(), Errno> {
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

fn start(flags: u64, walk: impl FnOnce(BorrowedFd<'_>) -> Result<Infallible, Stuck>) -> Result<Init, Failed> {
    let doing = || "starting a helper".into();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).doing(doing)?;
    match sys::clone3(flags, None).doing(doing)? {
        Cloned::Child => {
            drop(ours); // else this process would hold the parent's end open itself
            let Err(stuck) = walk(theirs.as_fd());
            report::stuck(theirs.as_fd(), stuck);
            sys::exit(1)
        }
        Cloned::Parent { pid, pidfd } => Ok(Init { pid, pidfd, socket: ours, kept: false }),
    }
}
