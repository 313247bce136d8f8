//! Entering namespaces and cgroups.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::report::{Step, Stuck, at, nth};
use crate::error::{Doing as _, Failed};
use crate::mount::options::{NODEV, NOEXEC, NOSUID};
use crate::mount::tree;
use crate::plan::Namespaces;
use crate::{rootless, sys};

/// What the parent has to go back to once the child is there: PID and time namespaces count for children only, and hooks
/// are children too.
pub struct Back(Vec<(OwnedFd, LinkNameSpaceType)>);

impl Back {
    /// # Errors
    /// The kernel does not let us back.
    pub fn restore(self) -> Result<(), Failed> {
        for (namespace, kind) in self.0 {
            match move_into_link_name_space(namespace.as_fd(), Some(kind)) {
                Err(Errno::PERM) if rootless::inside() => {} // it is of the host, where we have no rights
                back => back.doing(|| "going back to our own namespace".into())?,
            }
        }
        Ok(())
    }
}

/// Prepares, in the parent, the namespaces that only its children enter.
///
/// # Errors
/// A namespace may not be entered, or an offset was refused.
pub fn for_children(namespaces: &Namespaces) -> Result<Back, Failed> {
    let mut back = Vec::new();
    if let Some(pid) = &namespaces.pid {
        back.push((own("pid")?, LinkNameSpaceType::ProcessID));
        sys::setns(pid.as_fd(), libc::CLONE_NEWPID as u64).doing(|| "joining the PID namespace".into())?;
    }
    if let Some(offsets) = &namespaces.time_offsets {
        back.push((own("time")?, LinkNameSpaceType::Time));
        unshare(UnshareFlags::NEWTIME).doing(|| "making a time namespace".into())?;
        // Frozen once a process is inside, so they are written before the clone: time_namespaces(7).
        std::fs::write("/proc/self/timens_offsets", offsets)
            .doing(|| format!("writing linux.timeOffsets ({offsets:?})"))?;
    }
    Ok(Back(back))
}

fn own(kind: &str) -> Result<OwnedFd, Failed> {
    let path = format!("/proc/self/ns/{kind}");
    openat(rustix::fs::CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("opening {path}"))
}

/// Of this thread alone. There is no descriptor table of its own to lose, which rustix warns of.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    #[allow(deprecated)] // its successor is unsafe because of CLONE_FILES alone, which is not among our flags
    rustix::thread::unshare(flags)
}

/// Joins a v1 cgroup by its open `tasks` file.
pub fn cgroup(tasks: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::write(tasks, b"0").map(|_| ())
}

/// Joins namespaces: first those that the runtime's own rights open, whoever they belong to; then the user namespace,
/// which gives these rights up; then those that only its root may enter.
pub fn namespaces(joined: &[(OwnedFd, u64)]) -> Result<(), Stuck> {
    const USER: u64 = libc::CLONE_NEWUSER as u64;
    let user = joined.iter().any(|(_, kinds)| kinds & USER != 0);
    let mut later = 0;
    for (index, (namespace, kinds)) in (0u16..).zip(joined).filter(|(_, (_, kinds))| kinds & USER == 0) {
        match sys::setns(namespace.as_fd(), *kinds) {
            Err(Errno::PERM) if user => later |= kinds,
            answer => nth(Step::Namespace, index, answer)?,
        }
    }
    if !user {
        return Ok(());
    }
    for (index, (namespace, kinds)) in (0u16..).zip(joined).filter(|(_, (_, kinds))| kinds & USER != 0) {
        nth(Step::Namespace, index, sys::setns(namespace.as_fd(), *kinds))?;
        nth(Step::Namespace, index, mapped_root())?;
    }
    for (index, (namespace, kinds)) in (0u16..).zip(joined).filter(|(_, (_, kinds))| kinds & later != 0) {
        nth(Step::Namespace, index, sys::setns(namespace.as_fd(), *kinds))?;
    }
    Ok(())
}

pub fn new_cgroup_namespace() -> Result<(), Errno> {
    unshare(UnshareFlags::NEWCGROUP)
}

/// Becomes root of the user namespace, whose mappings are there now.
pub fn mapped_root() -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Writes kernel parameters through a procfs of our own that is mounted nowhere, so that nothing the container has mounted
/// can stand in the way (CVE-2025-52881).
pub fn write_sysctls(values: &[(CString, CString)]) -> Result<(), Stuck> {
    let proc = at(Step::Procfs, tree::bare(c"proc", NOSUID | NODEV | NOEXEC))?;
    for (index, (path, value)) in (0u16..).zip(values) {
        let written = openat(&proc, path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, value.to_bytes()));
        nth(Step::Sysctl, index, written)?;
    }
    Ok(())
}
