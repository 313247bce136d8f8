//! `NOTIFY_SOCKET`: a container that tells its service manager when it is ready, with the runtime in between.
//!
//! Inside, the socket is /run/notify/notify.sock, from a folder beside the state. What arrives there is not trusted: of all
//! that it may say only that it is ready is passed on, and the process's id is added as the host knows it.
//!
//! Source: sd_notify(3); runc's docs/systemd.md.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::error::{Doing as _, Failed};
use crate::handover::send_fd;
use crate::spec::Mount;

const INSIDE: &str = "/run/notify";
const FOLDER: &str = "notify";
const SOCKET: &str = "notify.sock";
/// How long the service manager may take to have read everything.
const BARRIER_SECONDS: i64 = 30;

/// The service manager's socket, from the environment.
pub struct Manager(PathBuf);

impl Manager {
    pub fn from_environment() -> Option<Manager> {
        std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(|path| Manager(path.into()))
    }

    fn connect(&self) -> Result<UnixDatagram, Failed> {
        let connected = || {
            let socket = UnixDatagram::unbound()?;
            match self.0.to_str().and_then(|path| path.strip_prefix('@')) {
                Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                None => socket.connect(&self.0)?,
            }
            Ok::<_, std::io::Error>(socket)
        };
        connected().doing(|| format!("connecting to NOTIFY_SOCKET {}", self.0.display()))
    }
}

/// Makes the folder that the socket will be in, and lets the container see it.
///
/// # Errors
/// The disk is full, …
pub fn prepare(state: &Path, bundle: &mut Bundle) -> Result<(), Failed> {
    let folder = state.join(FOLDER);
    std::fs::create_dir(&folder)
        .and_then(|()| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)))
        .doing(|| format!("making {}", folder.display()))?;
    bundle.spec.mounts.extend(mount_of(state));
    if let Some(process) = &mut bundle.spec.process {
        process.env.push(format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
    }
    Ok(())
}

/// What such a container has mounted beside its bundle's mounts.
pub fn mount_of(state: &Path) -> Option<Mount> {
    is_prepared(state).then(|| Mount {
        destination: INSIDE.into(),
        kind: "bind".into(),
        source: state.join(FOLDER).to_string_lossy().into_owned(),
        options: ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec(),
        ..Mount::default()
    })
}

/// Whether the container whose state is in this folder was made for that.
pub fn is_prepared(state: &Path) -> bool {
    state.join(FOLDER).is_dir()
}

/// Both ends: the container's, on which we listen, and the service manager's.
pub struct Relay {
    container: UnixDatagram,
    manager: UnixDatagram,
}

impl Relay {
    /// # Errors
    /// Nobody listens at the service manager's end, or the container was made without the folder.
    pub fn begin(manager: &Manager, state: &Path) -> Result<Relay, Failed> {
        let manager = manager.connect()?;
        let path = state.join(FOLDER).join(SOCKET);
        let bound = || {
            let socket = UnixDatagram::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let container = bound().doing(|| format!("listening at {}", path.display()))?;
        Ok(Relay { container, manager })
    }

    /// Readable when the container has said something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }

    /// Waits until the container is ready, and passes that on; or until its process has ended.
    ///
    /// # Errors
    /// The service manager does not take it.
    pub fn wait(&self, pid: i32, process: &OwnedFd) -> Result<(), Failed> {
        loop {
            let mut watched = [PollFd::new(&self.container, PollFlags::IN), PollFd::new(process, PollFlags::IN)];
            match poll(&mut watched, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing(|| "waiting for the container to be ready".into()),
            }
            let ended = !watched[1].revents().is_empty();
            if self.pass_on(pid)? || ended {
                return Ok(());
            }
        }
    }

    /// Reads what there is. Whether it was that the container is ready; then the service manager knows.
    ///
    /// # Errors
    /// The service manager does not take it.
    pub fn pass_on(&self, pid: i32) -> Result<bool, Failed> {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.container.recv(&mut buffer) {
            let ready = buffer[..length].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY="));
            if let Some(line) = ready {
                self.tell(line, pid)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn tell(&self, ready: &[u8], pid: i32) -> Result<(), Failed> {
        let telling = || "telling the service manager".into();
        self.manager.send(ready).doing(telling)?;
        self.manager.send(format!("MAINPID={pid}").as_bytes()).doing(telling)?;
        // It closes its copy when it has read so far; before that it would not know who has told it.
        let (held, given) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(telling)?;
        send_fd(self.manager.as_fd(), given.as_fd(), b"BARRIER=1").doing(telling)?;
        drop(given);
        let limit = Timespec { tv_sec: BARRIER_SECONDS, tv_nsec: 0 };
        poll(&mut [PollFd::new(&held, PollFlags::empty())], Some(&limit)).doing(telling)?;
        Ok(())
    }
}
