//! `tare create`: builds the container and leaves it waiting at its gate for `tare start`.
//!
//! Source: runtime-spec runtime.md, "Create" and "Lifecycle"; runc-create(8).

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::flags::{Flag, Order, Parsed, parse, switch, value};
use super::{Error, Global, only_id};
use crate::bundle::Bundle;
use crate::container::{self, Container, Options};
use crate::error::Doing as _;
use crate::notify::Manager;
use crate::plan::{Preserved, Receiver};
use crate::state::Id;

/// The flags of `create` and `run`; some are for `run` alone and of no effect here.
pub const FLAGS: &[Flag] = &[
    value(&["bundle", "b"]),
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["pid-file"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
    value(&["preserve-fds"]),
    switch(&["detach", "d"]),
    switch(&["keep"]),
    switch(&["no-subreaper"]),
];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let asked = Asked::read("create", &parsed)?;
    let bundle = Bundle::open(&asked.bundle)?; // every refusal is made here, by field name
    let terminal = console(&bundle, asked.console_socket.as_deref(), true)?;
    let container = Container::create(global, &asked.id, bundle, asked.options(terminal)?, container::Start::Later)?;
    container.write_pid(asked.pid_file.as_deref())?;
    container.keep();
    Ok(0)
}

/// The words of `create` and `run`, read.
pub struct Asked {
    pub id: Id,
    pub bundle: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserved: Preserved,
}

impl Asked {
    pub fn read(command: &str, parsed: &Parsed) -> Result<Asked, Error> {
        let path = |name: &str| parsed.value(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Asked {
            id: only_id(command, &parsed.words)?,
            bundle: path("bundle").unwrap_or_else(|| ".".into()),
            console_socket: path("console-socket"),
            pidfd_socket: path("pidfd-socket"),
            pid_file: path("pid-file"),
            no_pivot: parsed.is_set("no-pivot"),
            no_new_keyring: parsed.is_set("no-new-keyring"),
            preserved: preserved(parsed)?,
        })
    }

    pub fn options(&self, terminal: Option<Receiver>) -> Result<Options, Error> {
        Ok(Options {
            terminal,
            pidfd_socket: self.pidfd_socket.as_deref().map(connect_to).transpose()?,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserved: self.preserved,
            manager: Manager::from_environment(),
        })
    }
}

/// Descriptors to hand on: systemd's, if they are meant for us, then those of `--preserve-fds`.
pub fn preserved(parsed: &Parsed) -> Result<Preserved, Error> {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let listen = std::env::var("LISTEN_FDS").ok().filter(|_| ours).and_then(|count| count.parse().ok()).unwrap_or(0);
    let preserved = Preserved { listen, more: parsed.number("preserve-fds")?.max(0) };
    for fd in 3..3 + preserved.listen + preserved.more {
        crate::sys::keep_over_exec(fd).doing(|| format!("preserving file descriptor {fd}"))?;
    }
    Ok(preserved)
}

/// Where the terminal's master goes, if there is to be a terminal; combinations that cannot work are refused.
pub fn console(bundle: &Bundle, socket: Option<&Path>, detached: bool) -> Result<Option<Receiver>, Error> {
    match (bundle.process().terminal, socket) {
        (true, Some(path)) => Ok(Some(Receiver { socket: connect_to(path)?, ours: false })),
        (true, None) if detached => {
            Err(Error::Usage("cannot allocate tty if runc will detach without setting console socket".into()))
        }
        (false, Some(_)) => {
            Err(Error::Usage("cannot use console socket if runc will not detach or allocate tty".into()))
        }
        _ => Ok(None),
    }
}

pub fn connect_to(path: &Path) -> Result<OwnedFd, Error> {
    let connected = || -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(socket.as_fd(), &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    Ok(connected().doing(|| format!("connecting to {}", path.display()))?)
}
