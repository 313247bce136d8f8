//! What a caller gets beside an exit code: the pid file, and descriptors sent over its sockets.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::child::Init;
use crate::cli::{Error, connect_to};
use crate::error::{Doing as _, Failed};
use crate::hooks;
use crate::seccomp::Program;
use crate::state::State;

/// Decimal, without a newline, in place at once: whoever waits for the file reads the whole pid.
pub fn write_pid_file(file: &Path, pid: i32) -> Result<(), Failed> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let aside: PathBuf = file.with_file_name(format!(".{name}"));
    let write = || std::fs::write(&aside, pid.to_string()).and_then(|()| std::fs::rename(&aside, file));
    write().doing(|| format!("writing the pid file {}", file.display()))
}

/// Gives the seccomp listener to whoever the profile names, with the state that the specification asks for. The process
/// has opened it under `number`, and waits.
///
/// # Errors
/// Nobody listens there.
///
/// Source: runtime-spec config-linux.md, "The Container Process State".
pub fn seccomp_listener(
    init: &Init,
    filter: Option<&Program>,
    number: u16,
    state: &State,
    status: &str,
) -> Result<(), Error> {
    let listener = filter.and_then(|filter| filter.listener.as_ref());
    let listener = listener.ok_or_else(|| Error::Start("a seccomp listener that no profile asked for".into()))?;
    let fd = pidfd_getfd(&init.pidfd, i32::from(number), PidfdGetfdFlags::empty())
        .doing(|| "taking over the seccomp listener".into())?;
    let socket = connect_to(Path::new(&listener.path))
        .map_err(|error| Error::Start(format!("failed to connect with seccomp agent: {error}")))?;
    let told = serde_json::json!({
        "ociVersion": state.oci_version,
        "fds": ["seccompFd"],
        "pid": init.pid.as_raw_nonzero(),
        "metadata": listener.metadata,
        "state": hooks::told(state, status),
    });
    Ok(send_fd(socket.as_fd(), fd.as_fd(), told.to_string().as_bytes())
        .doing(|| format!("handing the seccomp listener to {}", listener.path))?)
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
