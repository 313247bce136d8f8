//! A network namespace takes the kernel as long to make as all else that comes before the container's first process. So a
//! thread makes it while the container is planned, and the process enters it where it first matters.
//!
//! Source: network_namespaces(7); setns(2).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::report::{Step, Stuck, at};
use super::{between, enter};
use crate::bundle::Bundle;
use crate::error::{Doing as _, Failed};
use crate::plan::Namespaces;
use crate::thread::Errand;
use crate::{rootless, sys};

/// A network namespace on its way, with its loopback interface up.
pub struct Aside(Errand);

impl Aside {
    /// Begins, if the container is to have one that nothing speaks against making here. Else, and where no thread is to be
    /// had, the clone makes it.
    pub fn begin(bundle: &Bundle) -> Option<Aside> {
        let new = |kind| bundle.namespace(kind).is_some_and(|namespace| namespace.path.is_empty());
        let belongs_here = bundle.namespace("user").is_none() && !rootless::inside();
        // Devices move in by the process's pid, at once; and whoever made a time namespace comes back from it only alone.
        if !new("network") || !belongs_here || new("time") || !bundle.linux().net_devices.is_empty() {
            return None;
        }
        Errand::begin(make).map(Aside)
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn ready(self) -> Result<OwnedFd, Failed> {
        self.0.finish().doing(|| "making a network namespace".into())
    }
}

/// On the thread, which alone enters it.
fn make() -> Result<OwnedFd, Errno> {
    enter::unshare(UnshareFlags::NEWNET)?;
    sys::loopback_up()?;
    openat(CWD, c"/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Enters the namespace that was made aside, when the parent has handed it over. Between clone and exec.
pub fn enter_made_aside(namespaces: &Namespaces, socket: BorrowedFd<'_>) -> Result<(), Stuck> {
    if !namespaces.network_aside {
        return Ok(());
    }
    let network = at(Step::Network, between::take_handle(socket).and_then(|handle| handle.ok_or(Errno::PIPE)))?;
    at(Step::Network, sys::setns(network.as_fd(), libc::CLONE_NEWNET as u64))
}
