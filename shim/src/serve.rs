//! The serving process of a group.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, set_child_subreaper};

use crate::args::Args;
use crate::children::Children;
use crate::error::Doing as _;
use crate::events::{Daemon, Events};
use crate::logs::Logs;
use crate::reactor::{self, Either};
use crate::task::Supervisor;
use crate::{Error, connection, log, sys};

/// How long events may take to go out before the process ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Serves the socket that is standard input, until the last task is gone and the daemon says so.
///
/// # Errors
/// Standard input is no socket, or the kernel lacks something.
pub fn serve(args: Args) -> Result<(), Error> {
    sys::close_inherited().doing(|| "closing inherited descriptors".into())?;
    sys::keep_heap_small();
    let signals = sys::signals().doing(|| "blocking signals".into())?;
    set_child_subreaper(Some(Pid::INIT)).doing(|| "becoming a subreaper".into())?;
    let listener = take_over_socket()?;
    let path = listener.local_addr().doing(|| "reading the socket's name".into())?;
    let path = path.as_pathname().ok_or("standard input is no socket: the command is start")?.to_owned();
    // The bundle is not to be held by us: it is removed with its container, we may have others.
    std::env::set_current_dir("/").doing(|| "leaving the bundle".into())?;
    Ok(reactor::run(run(args, listener, path, signals)).doing(|| "waiting".into())?)
}

async fn run(args: Args, listener: UnixListener, path: PathBuf, signals: OwnedFd) {
    let children = Rc::new(Children::default());
    let events = Events::new(&args.namespace, daemon(&args), children.clone());
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    let logs = Logs::new(&args.namespace, &args.id, children.clone());
    let supervisor = Supervisor::new(&args.namespace, args.debug, folder, events.clone(), children.clone(), logs);
    let supervisor = Rc::new(supervisor);
    reactor::spawn(events.clone().send());
    reactor::spawn(connection::accept(listener, supervisor.clone()));
    sys::trim_heap();
    let linger = match reactor::race(supervisor.over.wait(), asked_to_end(&signals, &children)).await {
        Either::First(linger) => linger,
        Either::Second(()) => {
            log::warn("ending at a signal: containers go on without a shim");
            Duration::ZERO
        }
    };
    if let Err(error) = std::fs::remove_file(&path) {
        log::warn(&format!("removing {}: {error}", path.display()));
    }
    if reactor::timeout(FAREWELL, events.told()).await.is_none() {
        log::warn("ending before the daemon has heard all events");
    }
    reactor::sleep(linger).await;
}

/// Returns at `SIGTERM` or `SIGINT`; at `SIGCHLD` it reaps those that nobody waits for.
async fn asked_to_end(signals: &OwnedFd, children: &Children) {
    while reactor::readable(signals).await.is_ok() {
        let mut information = [0; 128]; // signalfd(2): struct signalfd_siginfo, its first field is the number
        while let Ok(128) = rustix::io::read(signals, &mut information) {
            let number = i32::from_ne_bytes([information[0], information[1], information[2], information[3]]);
            if number != libc::SIGCHLD {
                return;
            }
        }
        children.reap_strangers();
    }
}

fn take_over_socket() -> Result<UnixListener, Error> {
    let doing = || "taking over the socket on standard input".into();
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).doing(doing)?;
    let null = std::fs::File::open("/dev/null").doing(|| "opening /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).doing(doing)?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).doing(doing)?;
    Ok(listener)
}

/// Where events go: `start` has passed it on in the environment, as the daemon gave it.
fn daemon(args: &Args) -> Daemon {
    match std::env::var_os("TTRPC_ADDRESS").filter(|path| !path.is_empty()) {
        Some(path) => Daemon::Socket(path.into()),
        None if args.publish_binary.as_os_str().is_empty() => Daemon::Nobody,
        None => Daemon::Publish { binary: args.publish_binary.clone(), address: args.address.clone() },
    }
}
