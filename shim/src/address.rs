//! Where a shim listens: a socket named by daemon, namespace and group, so that every start of one group finds the same.
//!
//! Source: containerd `pkg/shim/util_unix.go`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::geteuid;
use sha2::{Digest as _, Sha256};

use crate::error::{Doing as _, Failed};

/// Where containerd's own shims listen.
const FOLDER: &str = "/run/containerd/s";

/// What fits into an address, with its closing zero. Source: unix(7).
const LONGEST: usize = 107;

/// A socket's path. Having one proves that its folder is ours alone.
#[derive(Debug, Clone)]
pub struct Address(PathBuf);

impl Address {
    /// The socket of `group`, in `folder`, or in the usual one if there it would be a path too long for a socket. The folder
    /// is made if need be.
    ///
    /// # Errors
    /// No folder can be made that is ours alone.
    pub fn of(folder: Option<&Path>, daemon: &str, namespace: &str, group: &str) -> Result<Address, Failed> {
        let digest = Sha256::digest(format!("{daemon}/{namespace}/{group}"));
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let fits = |folder: &&Path| folder.join(&name).as_os_str().len() <= LONGEST;
        let folder = own_folder(folder.filter(fits).unwrap_or(Path::new(FOLDER)))?;
        Ok(Address(folder.join(name)))
    }

    /// As the daemon is told it.
    pub fn url(&self) -> String {
        format!("unix://{}", self.0.display())
    }

    /// Listens here, or says that another already does. Binding is the lock: of two that start at once, one wins.
    ///
    /// # Errors
    /// Neither is possible.
    pub fn claim(&self) -> Result<Option<UnixListener>, Failed> {
        let doing = || format!("listening at {}", self.0.display());
        for _ in 0..10 {
            match UnixListener::bind(&self.0) {
                Ok(listener) => {
                    fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600)).doing(doing)?;
                    return Ok(Some(listener));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).doing(doing),
            }
            if UnixStream::connect(&self.0).is_ok() {
                return Ok(None);
            }
            self.remove()?; // left by a shim that was killed
        }
        Err(Errno::ADDRINUSE).doing(doing)
    }

    /// Removes the socket if nobody listens.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_if_dead(&self) -> Result<(), Failed> {
        if UnixStream::connect(&self.0).is_err() { self.remove() } else { Ok(()) }
    }

    fn remove(&self) -> Result<(), Failed> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("removing the socket {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Makes `folder` if need be, and sees to it that it is ours alone.
fn own_folder(folder: &Path) -> Result<PathBuf, Failed> {
    let doing = || format!("making the folder {} for sockets", folder.display());
    fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).doing(doing)?;
    let found = fs::symlink_metadata(folder).doing(doing)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        return Err(Errno::ACCESS)
            .doing(|| format!("using the folder {} for sockets: it is not a folder of our own", folder.display()));
    }
    if found.mode() & 0o777 != 0o700 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).doing(doing)?;
    }
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_group_has_one_socket_that_only_its_owner_may_open() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("s");
        let of = |group| Address::of(Some(&folder), "/run/d.sock", "ns", group).unwrap();
        assert_eq!(of("pod").0, of("pod").0);
        assert_ne!(of("pod").0, of("other").0);
        let listener = of("pod").claim().unwrap().expect("nobody listens yet");
        assert_eq!(fs::metadata(of("pod").0).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert!(of("pod").claim().unwrap().is_none(), "somebody listens");
        drop(listener);
        assert!(of("pod").claim().unwrap().is_some(), "a dead socket is taken over");
    }

    #[test]
    fn a_folder_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join("s")).unwrap();
        let error = Address::of(Some(&dir.path().join("s")), "d", "n", "g").unwrap_err().to_string();
        assert!(error.ends_with("it is not a folder of our own: permission denied"), "{error}");
    }
}
