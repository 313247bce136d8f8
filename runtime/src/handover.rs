//! What a caller gets beside an exit code: the pid file, and descriptors sent over its sockets.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::{Doing as _, Failed};

/// Decimal, without a newline, in place at once: whoever waits for the file reads the whole pid.
pub fn write_pid_file(file: &Path, pid: i32) -> Result<(), Failed> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let aside: PathBuf = file.with_file_name(format!(".{name}"));
    let write = || std::fs::write(&aside, pid.to_string()).and_then(|()| std::fs::rename(&aside, file));
    write().doing(|| format!("writing the pid file {}", file.display()))
}

/// Sends a process handle, as containerd and others take it with `--pidfd-socket`.
pub fn send_pidfd(socket: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failed> {
    send_fd(socket, pidfd, name).doing(|| "sending the process's pidfd".into())
}

/// Sends one descriptor and what it is.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>, data: &[u8]) -> Result<(), rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}
