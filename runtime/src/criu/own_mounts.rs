//! A mount namespace for the time of a restore: what CRIU needs mounted is gone with it, also if we are killed.
//!
//! It is this process that goes there, and comes back once CRIU is started: CRIU takes its folders from our table of open
//! files, and may only mount in those that were opened in the namespace that it is in.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::{chroot, fchdir};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::Error;
use crate::error::{Doing as _, Failed};

/// Does `work` where `root` is a mount of its own that nothing covers, as CRIU asks for.
///
/// # Errors
/// The namespace cannot be made, or what `work` fails with.
pub fn with_root<T>(root: &Path, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let home = Home::here()?;
    #[allow(deprecated)] // its successor is unsafe because of CLONE_FILES alone, which is not among our flags
    rustix::thread::unshare(UnshareFlags::NEWNS).doing(|| "making a mount namespace".into())?;
    let done = bind(root).map_err(Error::from).and_then(|()| work());
    home.return_to()?;
    done
}

fn bind(root: &Path) -> Result<(), Failed> {
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .doing(|| "cutting the ties to the host's mounts".into())?;
    mount_bind_recursive(root, root).doing(|| format!("making {} a mount", root.display()))
}

/// Where we were.
struct Home {
    namespace: OwnedFd,
    root: OwnedFd,
    folder: OwnedFd,
}

impl Home {
    fn here() -> Result<Home, Failed> {
        let open = |path: &str, flags| {
            openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("opening {path}"))
        };
        Ok(Home {
            namespace: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH | OFlags::DIRECTORY)?,
            folder: open(".", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// setns(2) makes the namespace's root the process's root and current folder, which they need not have been.
    fn return_to(&self) -> Result<(), Failed> {
        let doing = || "going back to our own mount namespace".into();
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount)).doing(doing)?;
        fchdir(&self.root).doing(doing)?;
        chroot(c".").doing(doing)?;
        fchdir(&self.folder).doing(doing)
    }
}
