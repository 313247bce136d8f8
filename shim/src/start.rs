//! `start`: finds the serving process of the group, or makes one, and prints where it listens.
//!
//! Three dialects of the answer are spoken, because nothing on the command line tells who asks:
//!
//! | standard input | working folder | answer |
//! |---|---|---|
//! | `BootstrapParams` that name our id and namespace (containerd 2.3 and later, tared) | any | `BootstrapResult` |
//! | anything else | a sandbox's bundle (containerd 2.0 and later) | JSON, version 3 |
//! | anything else | a task's bundle | the plain address, which means version 2 to all of them |
//!
//! Both Task versions are served on the one socket, so each of them works with any answer.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use prost::Message as _;
use tare_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};

use crate::flags::Flags;
use crate::{Doing as _, Error, address};

/// More than this on standard input is not a daemon talking.
const LONGEST: u64 = 10 << 20;

pub fn start(flags: &Flags) -> Result<(), Error> {
    let mut input = Vec::new();
    std::io::stdin().take(LONGEST).read_to_end(&mut input).doing(|| "reading standard input".into())?;
    let asked = bootstrap(&input, flags);
    let dir = asked.as_ref().map(|asked| asked.socket_dir.as_str());
    let daemon = asked.as_ref().map_or(flags.address.as_str(), |asked| &asked.containerd_grpc_address);
    let socket = address::socket(dir, daemon, &flags.namespace, &address::group(&flags.id))?;
    if let Some(listener) = claim(&socket)? {
        spawn(flags, &socket, listener, asked.as_ref())?;
    }
    let address = format!("unix://{}", socket.display());
    fs::write("address", &address).doing(|| "writing the file address".into())?;
    let answer = match asked {
        Some(_) => BootstrapResult { version: 3, address, protocol: "ttrpc".into(), ..BootstrapResult::default() }
            .encode_to_vec(),
        None if in_sandbox() => {
            serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string().into_bytes()
        }
        None => address.into_bytes(), // no newline: 1.7 and 2.0 take it as part of the address
    };
    std::io::stdout().write_all(&answer).doing(|| "answering".into())
}

/// An `Any` parses as these parameters too; only ours name our id and namespace.
fn bootstrap(input: &[u8], flags: &Flags) -> Option<BootstrapParams> {
    let asked = BootstrapParams::decode(input).ok()?;
    (asked.instance_id == flags.id && asked.namespace == flags.namespace).then_some(asked)
}

fn in_sandbox() -> bool {
    std::env::current_dir()
        .is_ok_and(|dir| dir.components().any(|part| part.as_os_str() == "io.containerd.sandbox.controller.v1.shim"))
}

/// The listening socket, or none if somebody serves there already. Binding is the lock between two starts at once.
fn claim(socket: &Path) -> Result<Option<UnixListener>, Error> {
    for _ in 0..8 {
        match UnixListener::bind(socket) {
            Ok(listener) => {
                fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
                    .doing(|| format!("closing {}", socket.display()))?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).doing(|| format!("listening on {}", socket.display())),
        }
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(None),
            // Whoever listened there is gone.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(socket); // or another start was faster: the next round tells
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("connecting to {}", socket.display())),
        }
    }
    Err(Error::new(format!("listening on {}: somebody binds and leaves it again and again", socket.display())))
}

/// Starts the serving process: it gets the listening socket as standard input and keeps none of our descriptors.
fn spawn(flags: &Flags, socket: &Path, listener: UnixListener, asked: Option<&BootstrapParams>) -> Result<(), Error> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args().next().unwrap_or_default());
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    command.arg("-socket").arg(socket);
    if flags.debug {
        command.arg("-debug");
    }
    if let Some(asked) = asked {
        command.env("TTRPC_ADDRESS", &asked.containerd_ttrpc_address);
    }
    // The daemon reads this fifo; opened for both, it neither blocks here nor breaks when the daemon is away.
    let log = File::options().read(true).write(true).open("log");
    let log = log.map_or_else(|_| Stdio::null(), Stdio::from);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(Stdio::null()).stderr(log);
    let child = command.process_group(0).spawn().doing(|| "starting the serving process".into())?;
    let score = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        // One more than the daemon's: of the two, the daemon is to stay. Not allowed everywhere, and then it stays equal.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), (score + 1).min(1000).to_string());
    }
    Ok(())
}
