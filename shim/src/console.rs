//! Terminals: the runtime hands over the master side, bytes are copied between it and the client's fifos.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::{Doing as _, Error};

/// Where the runtime connects to hand over a terminal. The socket's file goes when this is dropped.
pub struct ConsoleSocket {
    pub listener: UnixListener,
    pub path: PathBuf,
}

impl ConsoleSocket {
    /// # Errors
    /// The folder cannot be written.
    pub fn make(pid: u32, number: u64) -> Result<ConsoleSocket, Error> {
        // A bundle's path may be too long for a socket: unix(7).
        let path = std::env::temp_dir().join(format!("tare-console-{pid}-{number}.sock"));
        let _ = std::fs::remove_file(&path); // left by a process that had our pid and was killed
        let listener = UnixListener::bind(&path).doing(|| format!("listening on {}", path.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).doing(|| format!("closing {}", path.display()))?;
        listener.set_nonblocking(true).doing(|| format!("listening on {}", path.display()))?;
        Ok(ConsoleSocket { listener, path })
    }

    /// The terminal's master, if the runtime has handed it over.
    pub fn master(&self) -> Option<OwnedFd> {
        let (socket, _) = self.listener.accept().ok()?;
        socket.set_nonblocking(false).ok()?;
        receive(&socket).ok()
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already is what is wanted
    }
}

fn receive(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 256];
    recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut masters = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let master = masters.next().ok_or(Errno::BADMSG)?;
    rustix::fs::fcntl_setfl(&master, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK)?;
    Ok(master)
}

/// Bytes from one descriptor to another, with room for one read: a writer that is not taken from waits in the kernel.
pub struct Pump {
    pub from: OwnedFd,
    pub to: OwnedFd,
    kept: VecDeque<u8>,
}

/// What a pump waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    Reading,
    Writing,
    /// There is nothing more.
    Nothing,
}

impl Pump {
    pub fn new(from: OwnedFd, to: OwnedFd) -> Pump {
        Pump { from, to, kept: VecDeque::new() }
    }

    /// Copies as far as it goes without waiting.
    pub fn advance(&mut self) -> Wants {
        let mut buffer = [0; 8192];
        loop {
            while !self.kept.is_empty() {
                match rustix::io::write(self.to.as_fd(), self.kept.as_slices().0) {
                    Ok(length) => drop(self.kept.drain(..length)),
                    Err(Errno::AGAIN) => return Wants::Writing,
                    Err(Errno::INTR) => {}
                    Err(_) => return Wants::Nothing,
                }
            }
            match rustix::io::read(self.from.as_fd(), &mut buffer) {
                Ok(0) => return Wants::Nothing,
                Ok(length) => self.kept.extend(&buffer[..length]),
                Err(Errno::AGAIN) => return Wants::Reading,
                Err(Errno::INTR) => {}
                Err(_) => return Wants::Nothing, // EIO: nobody has the terminal open any more
            }
        }
    }
}
