//! A command that stays until its process ends: signals go to the process, a terminal is copied both ways, and the
//! process's exit code becomes ours.

use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};
use rustix::process::{WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::child::Init;
use crate::error::{Doing as _, Failed};
use crate::notify::Relay;
use crate::plan::Receiver;
use crate::sys;

/// All signals blocked and readable instead, since before the process was there.
pub struct Foreground {
    signals: OwnedFd,
}

impl Foreground {
    /// # Errors
    /// Out of descriptors.
    pub fn begin() -> Result<Foreground, Failed> {
        Ok(Foreground { signals: sys::signals_as_descriptor().doing(|| "blocking signals".into())? })
    }

    /// Forwards and copies until the process has ended; gives its exit code, 128 + n for signal n.
    ///
    /// # Errors
    /// The terminal cannot be set, or waiting failed.
    pub fn wait(&self, init: &Init, terminal: Option<Terminal>, mut relay: Option<Relay>) -> Result<i32, Failed> {
        let mut copier = terminal.map(Copier::begin).transpose()?;
        let mut input = true;
        loop {
            let mut watched = vec![PollFd::new(&init.pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            let stdin = rustix::stdio::stdin();
            if let Some(copier) = &copier {
                watched.push(PollFd::new(&copier.master, PollFlags::IN));
                if input {
                    watched.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
                }
            }
            if let Some(relay) = &relay {
                watched.push(PollFd::from_borrowed_fd(relay.as_fd(), PollFlags::IN));
            }
            match poll(&mut watched, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing(|| "waiting for the container".into()),
            }
            let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[1] {
                self.forward(init, copier.as_ref())?;
            }
            if let Some(copier) = &mut copier {
                if ready[2] {
                    copier.output();
                }
                if input && ready[3] {
                    input = copier.input();
                }
            }
            if let (Some(told), Some(true)) = (&relay, ready.last())
                && told.pass_on(init.pid.as_raw_nonzero().get())?
            {
                relay = None;
            }
            if ready[0] {
                if let Some(copier) = &mut copier {
                    copier.drain();
                }
                return reap(init);
            }
        }
    }

    fn forward(&self, init: &Init, copier: Option<&Copier>) -> Result<(), Failed> {
        while let Some(signal) = sys::next_signal(self.signals.as_fd()).doing(|| "reading a signal".into())? {
            match signal {
                libc::SIGCHLD => reap_adopted(init),
                libc::SIGWINCH => {
                    if let Some(copier) = copier {
                        copier.resize();
                    }
                }
                libc::SIGURG | libc::SIGPIPE => {}
                signal => {
                    let Some(signal) = rustix::process::Signal::from_named_raw(signal) else { continue };
                    let _ = pidfd_send_signal(&init.pidfd, signal); // gone already: the next round sees it
                }
            }
        }
        Ok(())
    }
}

/// Waits for children that came to us because we are a subreaper.
fn reap_adopted(init: &Init) {
    while let Some(pid) = sys::ended_child() {
        if pid == init.pid {
            return; // its status is collected by pidfd
        }
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
}

fn reap(init: &Init) -> Result<i32, Failed> {
    let ended = waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED)
        .doing(|| "collecting the exit status".into())?;
    let ended = ended.ok_or(Errno::CHILD).doing(|| "collecting the exit status".into())?;
    Ok(ended.exit_status().unwrap_or_else(|| 128 + ended.terminating_signal().unwrap_or(0)))
}

/// Our end of a terminal's hand-over: the master arrives here.
pub struct Terminal(OwnedFd);

impl Terminal {
    /// The end for the container, and ours.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> Result<(Receiver, Terminal), Failed> {
        let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .doing(|| "making a socket pair".into())?;
        Ok((Receiver { socket: theirs, ours: true }, Terminal(ours)))
    }

    fn master(&self) -> Result<OwnedFd, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 64];
        recvmsg(&self.0, &mut [std::io::IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let masters = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        masters.last().ok_or(Errno::BADMSG)
    }
}

/// Copies between our terminal, made raw, and the container's.
struct Copier {
    master: std::fs::File,
    before: Option<Termios>,
}

impl Copier {
    fn begin(terminal: Terminal) -> Result<Copier, Failed> {
        let master = terminal.master().doing(|| "receiving the container's terminal".into())?;
        let stdin = rustix::stdio::stdin();
        let before = if isatty(stdin) {
            Some(tcgetattr(stdin).doing(|| "reading the terminal's settings".into())?)
        } else {
            None
        };
        let copier = Copier { master: master.into(), before };
        if let Some(before) = &copier.before {
            let mut raw = before.clone();
            raw.make_raw();
            raw.output_modes = before.output_modes; // what we copy ends its lines as any program does: see child/terminal.rs
            tcsetattr(stdin, OptionalActions::Now, &raw).doing(|| "making the terminal raw".into())?;
            copier.resize();
        }
        Ok(copier)
    }

    /// The container's terminal gets the size of ours, if ours is one.
    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            let _ = tcsetwinsize(&self.master, size); // it may have hung up
        }
    }

    /// A terminal that has hung up reads as an error: nothing more will come, and the process's end tells the rest.
    fn output(&mut self) -> bool {
        let mut buffer = [0; 8192];
        let Ok(length @ 1..) = self.master.read(&mut buffer) else { return false };
        std::io::stdout().write_all(&buffer[..length]).and_then(|()| std::io::stdout().flush()).is_ok()
    }

    /// Whether there may be more input.
    fn input(&mut self) -> bool {
        let mut buffer = [0; 8192];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(length @ 1..) => self.master.write_all(&buffer[..length]).is_ok(),
            _ => {
                let _ = self.master.write_all(&[4]); // end of transmission: the line discipline's end of file
                false
            }
        }
    }

    /// What the process has written before it ended.
    fn drain(&mut self) {
        let readable = |master: BorrowedFd<'_>| {
            let mut watched = [PollFd::from_borrowed_fd(master, PollFlags::IN)];
            let none = rustix::event::Timespec::default();
            poll(&mut watched, Some(&none)).is_ok_and(|count| count > 0) && watched[0].revents().contains(PollFlags::IN)
        };
        while readable(self.master.as_fd()) && self.output() {}
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before); // nobody is left to tell
        }
    }
}
