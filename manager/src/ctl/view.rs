//! A container's root file system, looked at without mounting it anywhere that others see.
#![allow(unsafe_code)] // leaving a mount namespace is a call that rustix counts as unsafe

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tare_proto::containerd::types::Mount;

/// Calls `look` with the folder where `mounts` are mounted to be read. `at` is any folder. On a thread in a mount namespace of
/// its own.
pub fn with<T: Send>(mounts: &[Mount], at: &Path, look: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(move || {
            // SAFETY: without FILES, descriptors stay shared; root and working folder, which FS parts, are this thread's
            // alone from here on and it only uses absolute paths.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.context("making a mount namespace")?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).context("making the mount namespace private")?;
            for each in mounts {
                attach(each, at).with_context(|| format!("mounting {} at {}", each.r#type, at.display()))?;
            }
            let seen = look(at);
            // Now, and not some time after the thread: the container's overlay uses the same folders.
            for _ in mounts {
                unmount(at, UnmountFlags::empty()).with_context(|| format!("unmounting {}", at.display()))?;
            }
            seen
        });
        looking.join().map_err(|_| anyhow!("looking at the image's users failed"))?
    })
}

/// Only to read. An overlay's upper folder becomes its topmost lower one: nothing is to be written, and the kernel wants no
/// folder to be the upper one of two.
fn attach(each: &Mount, at: &Path) -> Result<()> {
    if each.r#type == "bind" {
        return Ok(mount_bind(each.source.as_str(), at)?);
    }
    let option = |name: &str| each.options.iter().find_map(|option| option.strip_prefix(name));
    let mut data: Vec<String> =
        each.options.iter().filter(|option| option.contains('=') || *option == "userxattr").cloned().collect();
    if let (Some(upper), Some(lower)) = (option("upperdir="), option("lowerdir=")) {
        data.retain(|option| !["upperdir=", "workdir=", "lowerdir="].iter().any(|name| option.starts_with(name)));
        data.push(format!("lowerdir={upper}:{lower}"));
    }
    let data = std::ffi::CString::new(data.join(","))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount(each.source.as_str(), at, each.r#type.as_str(), flags, Some(data.as_c_str()))?)
}
