//! A file that is mounted as a disk would be: through a loop device, which the kernel lets go of with the mount.
//!
//! Source: loop(4).

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Doing as _, Failed};
use crate::sys;

/// How often another one may be quicker with a device that was free.
const ATTEMPTS: u32 = 100;

/// Binds `file` to a free loop device. To be mounted while the second value is there.
///
/// # Errors
/// The file cannot be opened, or there is no device.
pub fn bind(file: &str, is_read_only: bool, direct: bool) -> Result<(PathBuf, OwnedFd), Failed> {
    let open = |path: &Path| File::options().read(true).write(!is_read_only).open(path);
    let backing = open(Path::new(file)).doing(|| format!("opening {file}"))?;
    let doing = || format!("binding {file} to a loop device");
    let control = File::options().read(true).write(true).open("/dev/loop-control").doing(doing)?;
    for _ in 0..ATTEMPTS {
        let number = sys::free_loop_device(control.as_fd()).doing(doing)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path).doing(|| format!("opening {}", path.display()))?;
        match sys::configure_loop_device(device.as_fd(), backing.as_fd(), is_read_only, direct) {
            Err(Errno::BUSY) => {}
            other => return other.doing(doing).map(|()| (path, device.into())),
        }
    }
    Err(Errno::BUSY).doing(doing)
}
