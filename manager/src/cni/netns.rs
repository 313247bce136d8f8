//! Network namespaces that outlive whoever made them: each is bind-mounted to a file of its own, as `ip netns` does.

#![allow(unsafe_code)] // unshare(2)

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::{Doing as _, Error, Result};

/// Where `ip netns` and other tools look for them.
pub const FOLDER: &str = "/run/netns";

/// Makes a namespace whose loopback is up, and pins it at `path`. It takes a thread of its own, for the namespace is a
/// thread's, and the daemon's threads keep theirs.
///
/// # Errors
/// `AlreadyExists`: something is at `path`; or the kernel's. Nothing is left then.
pub fn make(path: &Path) -> Result<()> {
    pin(path, || {
        // SAFETY: NEWNET alone: file descriptors stay shared, and this thread makes no socket it would later miss.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.doing(|| "making a network namespace".into())?;
        loopback_up()?;
        let thread = format!("/proc/self/task/{}/ns/net", rustix::thread::gettid().as_raw_nonzero());
        Ok(thread.into())
    })
}

/// Pins a namespace that somebody made, `/proc/PID/ns/net`, at `path`, and brings its loopback up.
///
/// # Errors
/// As [`make`].
pub fn keep(of: &Path, path: &Path) -> Result<()> {
    pin(path, || {
        enter(of)?;
        loopback_up()?;
        Ok(of.to_owned())
    })
}

/// Takes a pinned namespace away; it ends with its last process. One that is gone already is no error.
///
/// # Errors
/// The kernel's.
pub fn remove(path: &Path) -> Result<()> {
    // A crash between mount and record, or a second daemon, may have mounted twice.
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno).doing(|| format!("unmounting {}", path.display())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Pinned namespaces below `folder` whose names begin with `prefix`.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let doing = || format!("reading {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing(doing)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.doing(doing)?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Runs something inside a namespace, on a thread that ends with it.
///
/// # Errors
/// The namespace cannot be entered, or what `work` says.
pub fn inside<T: Send + 'static>(path: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = path.to_owned();
    on_a_thread(move || {
        enter(&path)?;
        work()
    })
}

fn enter(path: &Path) -> Result<()> {
    let doing = || format!("entering the network namespace {}", path.display());
    let namespace = fs::File::open(path).doing(doing)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).doing(doing)
}

fn pin(path: &Path, source: impl FnOnce() -> Result<PathBuf> + Send) -> Result<()> {
    let doing = || format!("pinning a network namespace at {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).doing(doing)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::AlreadyExists(format!("network namespace {}", path.display())));
        }
        other => drop(other.doing(doing)?),
    }
    let pinned = on_a_thread(|| mount_bind(source()?, path).doing(doing));
    if pinned.is_err()
        && let Err(error) = remove(path)
    {
        tracing::warn!("{error}");
    }
    pinned
}

/// A thread that may end in another namespace than it began in, and so never goes back to a pool.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        let thread = thread.doing(|| "starting a thread".into())?;
        thread.join().unwrap_or_else(|_| Err(Error::Internal("a thread in a network namespace panicked".into())))
    })
}

/// Brings `lo`, which is always the first interface, up in this thread's namespace.
///
/// Source: rtnetlink(7), `RTM_NEWLINK`.
fn loopback_up() -> Result<()> {
    const NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
    const UP: u32 = 0x1;
    let mut request = Vec::with_capacity(32);
    request.extend(32_u32.to_ne_bytes());
    request.extend(NEWLINK.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 4]); // family, type
    request.extend(1_i32.to_ne_bytes());
    request.extend(UP.to_ne_bytes());
    request.extend(UP.to_ne_bytes()); // of the flags, change this one
    let ask = || -> rustix::io::Result<()> {
        let socket = net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?; // protocol 0 is NETLINK_ROUTE
        net::send(&socket, &request, SendFlags::empty())?;
        let mut answer = [0_u8; 64];
        let (_, length) = net::recv(&socket, &mut answer, RecvFlags::empty())?;
        let errno: [u8; 4] = answer[..length].get(16..20).and_then(|b| b.try_into().ok()).ok_or(Errno::PROTO)?;
        match -i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    };
    ask().doing(|| "bringing lo up".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_stays_until_it_is_removed_and_its_loopback_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t-1");
        make(&path).unwrap();
        assert!(matches!(make(&path), Err(Error::AlreadyExists(_))));
        assert_eq!(list(dir.path(), "t-").unwrap(), std::slice::from_ref(&path));
        let heard = inside(&path, || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").doing(|| "binding".into())?;
            let address = listener.local_addr().doing(|| "asking".into())?;
            std::net::TcpStream::connect(address).doing(|| "connecting".into()).map(|_| address.ip().is_loopback())
        });
        assert!(heard.unwrap());
        let again = dir.path().join("t-2");
        keep(&path, &again).unwrap();
        assert_eq!(inode(&path), inode(&again));
        assert_ne!(inode(&path), inode(Path::new("/proc/self/ns/net")));
        for path in [&path, &again, &path] {
            remove(path).unwrap();
        }
        assert!(list(dir.path(), "").unwrap().is_empty());
    }

    fn inode(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
    }
}
