//! Terminals: the runtime hands over the master side, and bytes are copied between it and the client.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Doing as _, Failed};
use crate::reactor::{self, Either, Latch};

/// How long a runtime that was successful may take to hand over the terminal.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the runtime connects to hand over a terminal. Its file goes when this is dropped.
pub struct ConsoleSocket {
    listener: UnixListener,
    pub path: PathBuf,
}

impl ConsoleSocket {
    /// In a folder of our own, whose path is short: a bundle's may be too long for a socket, unix(7).
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn listen(folder: &Path, number: u64) -> Result<ConsoleSocket, Failed> {
        let path = folder.join(format!("tty-{}-{number}", std::process::id()));
        let doing = || format!("listening at {}", path.display());
        let _ = std::fs::remove_file(&path); // left by a process that had our number and was killed
        let listener = UnixListener::bind(&path).doing(doing)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        Ok(ConsoleSocket { listener, path })
    }

    /// The terminal's master.
    ///
    /// # Errors
    /// None came.
    pub async fn receive(self) -> Result<OwnedFd, Failed> {
        let received = reactor::timeout(PATIENCE, async {
            reactor::readable(&self.listener).await?;
            let (socket, _) =
                self.listener.accept().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            reactor::readable(&socket).await?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut name = [0; 256]; // what the runtime calls it, which is of no use here
            let mut pieces = [std::io::IoSliceMut::new(&mut name)];
            recvmsg(&socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut masters = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            masters.next().ok_or(Errno::BADMSG)
        });
        received.await.unwrap_or(Err(Errno::TIMEDOUT)).doing(|| "receiving the terminal from the runtime".into())
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already is what is wanted
    }
}

/// A terminal that is being copied.
pub struct Terminal {
    /// The one descriptor that we have of it.
    master: Rc<OwnedFd>,
    /// The output has got through, to the last byte.
    drained: Rc<Latch<()>>,
    stopped: Rc<Latch<()>>,
}

impl Terminal {
    /// Copies until nobody has the terminal open any more.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn copy(master: OwnedFd, input: Option<OwnedFd>, output: Option<OwnedFd>) -> std::io::Result<Terminal> {
        nonblocking(&master)?;
        let terminal =
            Terminal { drained: Rc::new(Latch::new()), stopped: Rc::new(Latch::new()), master: Rc::new(master) };
        let (reader, writer) = (terminal.master.clone(), terminal.master.clone());
        let (drained, stopped) = (terminal.drained.clone(), terminal.stopped.clone());
        if let Some(output) = &output {
            nonblocking(output)?;
        }
        reactor::spawn(async move {
            reactor::race(copy(&reader, output.as_ref()), stopped.wait()).await;
            drop(output); // the client reads the end before anyone is told that all got through
            drained.set(());
        });
        if let Some(input) = input {
            nonblocking(&input)?;
            let (drained, stopped) = (terminal.drained.clone(), terminal.stopped.clone());
            reactor::spawn(async move {
                let ended = async {
                    reactor::race(drained.wait(), stopped.wait()).await;
                };
                if let Either::First(Err(errno)) = reactor::race(copy(&input, Some(&writer)), ended).await
                    && errno != Errno::IO
                {
                    crate::log::warn(&format!("copying to a terminal: {errno}"));
                }
            });
        }
        Ok(terminal)
    }

    /// # Errors
    /// It is no terminal any more.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), Errno> {
        tcsetwinsize(&self.master, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 })
    }

    pub async fn drained(&self) {
        self.drained.wait().await;
    }

    pub fn stop(&self) {
        self.stopped.set(());
    }
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

/// Copies to the end; a terminal's master reads as `EIO` when nobody has the other side open. With nowhere to go the
/// bytes are thrown away: a terminal that nobody reads would stop its processes.
async fn copy(from: &OwnedFd, to: Option<&OwnedFd>) -> Result<(), Errno> {
    loop {
        reactor::readable(from).await?;
        let mut buffer = [0; 4096];
        let length = match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => return Ok(()),
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        if let Some(to) = to {
            reactor::write_all(to, &buffer[..length]).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    /// How many of our descriptors are masters of terminals.
    fn masters() -> usize {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path.ends_with("ptmx"))).count()
    }

    #[test]
    fn a_terminal_is_copied_in_both_directions_over_one_descriptor_which_goes_with_it() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let peer = ioctl_tiocgptpeer(&master, flags).unwrap();
        let ((input, client), (shown, output)) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
        reactor::run(async move {
            let terminal = Terminal::copy(master, Some(input), Some(output)).unwrap();
            rustix::io::write(&client, b"typed\n").unwrap();
            rustix::io::write(&peer, b"said\n").unwrap();
            let (mut text, mut buffer) = (Vec::new(), [0; 64]);
            let arrived = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|part| part == word);
            while !(arrived(&text, b"typed") && arrived(&text, b"said")) {
                reactor::readable(&shown).await.unwrap(); // the terminal echoes what is typed
                let length = rustix::io::read(&shown, &mut buffer).unwrap();
                text.extend(&buffer[..length]);
            }
            assert_eq!(masters(), 1);
            drop(peer);
            terminal.drained().await;
            terminal.stop();
            drop(terminal);
            while masters() > 0 {
                reactor::sleep(Duration::from_millis(1)).await; // until the other direction has seen the end
            }
        })
        .unwrap();
    }
}
