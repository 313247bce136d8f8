//! A terminal of the container's own: opened in its devpts, its master sent out, its other side taken over.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fchown, openat};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::report::{Step, Stuck, at};
use crate::mount::options::Depth;
use crate::mount::root::{self, Missing, Target};
use crate::mount::tree;
use crate::plan::Terminal;
use crate::sys;

/// The side of a terminal that a program uses.
pub struct Opened(OwnedFd);

/// Opens a terminal and sends its master out. Before the root is changed it is found below `root`, afterwards below `/`.
pub fn open(asked: &Terminal, root: Option<BorrowedFd<'_>>, uid: u32) -> Result<Opened, Stuck> {
    let user = at(Step::Terminal, open_pair(asked, root, uid))?;
    if let (true, Some(root)) = (asked.console, root) {
        at(Step::Console, bind_console(user.as_fd(), &asked.console_target, root))?;
    }
    Ok(Opened(user))
}

fn open_pair(asked: &Terminal, root: Option<BorrowedFd<'_>>, uid: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match root {
        Some(root) => root::open(root, c"dev/pts/ptmx", flags)?,
        None => openat(rustix::fs::CWD, c"/dev/pts/ptmx", flags, Mode::empty())?,
    };
    sys::unlock_terminal(master.as_fd())?;
    // By the master, not by a path that someone may have replaced (CVE-2025-52565).
    let user = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if let Some((rows, columns)) = asked.size {
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    if asked.receiver.ours {
        // Whoever reads what we copy, a terminal or not, does with a line's end what it does with any other program's.
        let mut settings = tcgetattr(&user)?;
        settings.output_modes.remove(OutputModes::ONLCR);
        tcsetattr(&user, OptionalActions::Now, &settings)?;
    }
    fchown(&user, Some(rustix::process::Uid::from_raw(uid)), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let masters = [master.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&masters)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(&asked.receiver.socket, &[IoSlice::new(b"/dev/pts/ptmx")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(user)
}

fn bind_console(user: BorrowedFd<'_>, target: &Target, root: BorrowedFd<'_>) -> Result<(), Errno> {
    let (place, _) = target.reach(root, Missing::File)?;
    let copy = tree::clone(user, c"", Depth::Alone)?;
    tree::attach(copy.as_fd(), place.as_fd())
}

impl Opened {
    /// Makes it standard input, output, error and the controlling terminal.
    pub fn take_over(self) -> Result<(), Errno> {
        rustix::process::ioctl_tiocsctty(&self.0)?;
        for slot in 0..3 {
            sys::dup_to(self.0.as_fd(), slot)?;
        }
        Ok(())
    }
}
