//! A service of systemd: sockets that it opened for us, and words to it about our state.
//!
//! Source: sd_listen_fds(3), sd_notify(3).
#![allow(unsafe_code)] // taking possession of descriptors that come with the process

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use rustix::io::FdFlags;

use crate::error::{Doing as _, Result};

const FIRST: i32 = 3;

/// Sockets that were opened for this process and are not taken yet.
#[derive(Default)]
pub struct Passed(Vec<UnixListener>);

impl Passed {
    /// Takes possession of all that the environment names. To be called once, before anything else is opened.
    ///
    /// # Errors
    /// A descriptor that the environment names is not open.
    pub fn take_all() -> Result<Passed> {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(Passed::default());
        }
        let count = i32::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0);
        let take = |fd: i32| {
            // SAFETY: descriptors from 3 on are this process's own by the protocol, the variable with its pid says that
            // they are there, and nothing else in the program has taken them: it calls this once, first.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)
                .doing(|| "taking a socket from the service manager".into())?;
            Ok(UnixListener::from(fd))
        };
        (FIRST..FIRST + count).map(take).collect::<Result<_>>().map(Passed)
    }

    /// The one that is bound to `path`.
    pub fn at(&mut self, path: &Path) -> Option<UnixListener> {
        let is_it =
            |socket: &UnixListener| socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path));
        let place = self.0.iter().position(is_it)?;
        Some(self.0.swap_remove(place))
    }
}

/// Tells the service manager, if one started us, of a change: `READY=1`, `STOPPING=1`.
///
/// # Errors
/// It named a socket where nobody listens.
pub fn notify(state: &str) -> Result<()> {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let doing = || format!("telling the service manager {state}");
    let text = socket.to_string_lossy();
    let address = match text.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes()),
        None => SocketAddr::from_pathname(Path::new(&socket)),
    };
    let address = address.doing(doing)?;
    UnixDatagram::unbound().and_then(|own| own.send_to_addr(state.as_bytes(), &address)).doing(doing).map(|_| ())
}
