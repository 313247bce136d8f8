//! The network namespace of a pod with ids of its own: it must belong to the pod's user namespace, or nobody in the pod
//! could configure it or mount its sysfs.
//!
//! Only a process with one thread can make a user namespace, so one is started for it. It waits while its ids are mapped
//! and its namespace is pinned; the pod then joins the user namespace that owns what was pinned.
//!
//! Source: user_namespaces(7), network_namespaces(7), ioctl_nsfs(2).
#![allow(unsafe_code)] // one call between fork and exec

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;
use tare_proto::runtime::v1 as pb;

use crate::cni;
use crate::error::{Doing as _, Result};

/// # Errors
/// There may be no more user namespaces, or the ids cannot be mapped.
pub fn make_netns(path: &Path, users: &pb::UserNamespace) -> Result<()> {
    let doing = || format!("making a user namespace for {}", path.display());
    let mut command = Command::new("/bin/cat"); // ends with its input
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
    let unshare = || {
        // SAFETY: the child has one thread, and shares no file descriptors or memory with us.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
        Ok(())
    };
    // SAFETY: `unshare` makes one system call and allocates nothing.
    unsafe { command.pre_exec(unshare) };
    let mut holder = command.spawn().doing(doing)?;
    let made = pin(&format!("/proc/{}", holder.id()), path, users);
    drop(holder.stdin.take());
    holder.wait().doing(doing)?;
    made
}

fn pin(process: &str, path: &Path, users: &pb::UserNamespace) -> Result<()> {
    for (file, ids) in [("uid_map", &users.uids), ("gid_map", &users.gids)] {
        let lines: String =
            ids.iter().map(|ids| format!("{} {} {}\n", ids.container_id, ids.host_id, ids.length)).collect();
        fs::write(format!("{process}/{file}"), lines).doing(|| format!("mapping the ids of {}", path.display()))?;
    }
    cni::netns::keep(Path::new(&format!("{process}/ns/net")), path)
}
