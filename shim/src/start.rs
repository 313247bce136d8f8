//! `start`: finds the serving process of the group, or makes one, and prints where it listens.
//!
//! Nothing on the command line tells which daemon asks, so the answer depends on what it sent and where it runs us:
//!
//! | standard input | working folder | answer |
//! |---|---|---|
//! | `BootstrapParams` that name our id and namespace (containerd 2.3 and later, and tared) | any | `BootstrapResult`, version 3 |
//! | anything else | a sandbox's bundle (containerd 2.0 and later) | JSON, version 3 |
//! | anything else | a task's bundle | the plain address, which means version 2 to every daemon |
//!
//! Both versions of the Task service are served on the one socket, so each daemon works with its answer. Standard error
//! stays empty unless we fail: daemons read it together with the answer.
//!
//! Source: containerd `core/runtime/v2/shim.go` and `pkg/shim`, `api/runtime/bootstrap/v1`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use prost::Message as _;
use prost_types::Any;
use rustix::process::Pid;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};
use tare_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};

use crate::address::Address;
use crate::args::Args;
use crate::bundle::Config;
use crate::error::Doing as _;
use crate::options::Options;
use crate::{Error, cgroup};

/// More than this on standard input is no daemon talking.
const LONGEST_INPUT: u64 = 10 << 20;

/// # Errors
/// There is neither a serving process nor one to be made.
pub fn start(args: &Args) -> Result<(), Error> {
    let asked = Asked::read(args)?;
    let bundle = std::env::current_dir().doing(|| "finding the bundle".into())?;
    let options = asked.options()?;
    if !options.task_api_address.is_empty() {
        return print(&asked.answer(options.task_api_address, &bundle)); // the pod's shim is there already
    }
    let config = Config::read(&bundle)?;
    let address = Address::of(asked.socket_dir(), asked.daemon(args), &args.namespace, config.group(&args.id))?;
    if is_sandbox(&bundle) || !bundle.join("config.json").exists() {
        options.write(&bundle)?; // a sandbox: `CreateSandbox` does not bring them
    }
    if let Some(listener) = address.claim()? {
        spawn(args, &asked, &options, listener)?;
    }
    fs::write("address", address.url()).doing(|| "writing the file address".into())?; // daemons before 2.0 read it
    print(&asked.answer(address.url(), &bundle))
}

fn print(answer: &[u8]) -> Result<(), Error> {
    Ok(std::io::stdout().write_all(answer).doing(|| "answering".into())?)
}

/// What the daemon wrote to standard input.
enum Asked {
    Bootstrap(BootstrapParams),
    /// The runtime's options, or nothing.
    Options(Any),
}

impl Asked {
    fn read(args: &Args) -> Result<Asked, Error> {
        let mut input = Vec::new();
        std::io::stdin().take(LONGEST_INPUT).read_to_end(&mut input).doing(|| "reading standard input".into())?;
        Asked::parse(&input, args)
    }

    /// An `Any` reads as parameters too, and only parameters name our id and namespace.
    fn parse(input: &[u8], args: &Args) -> Result<Asked, Error> {
        match BootstrapParams::decode(input) {
            Ok(params) if params.instance_id == args.id && params.namespace == args.namespace => {
                Ok(Asked::Bootstrap(params))
            }
            _ => Ok(Asked::Options(Any::decode(input)?)),
        }
    }

    fn socket_dir(&self) -> Option<&Path> {
        match self {
            Asked::Bootstrap(params) if !params.socket_dir.is_empty() => Some(Path::new(&params.socket_dir)),
            _ => None,
        }
    }

    /// The daemon's gRPC socket, which names it.
    fn daemon<'a>(&'a self, args: &'a Args) -> &'a str {
        match self {
            Asked::Bootstrap(params) if args.address.is_empty() => &params.containerd_grpc_address,
            _ => &args.address,
        }
    }

    fn options(&self) -> Result<Options, Error> {
        let any = match self {
            Asked::Options(any) => Some(any),
            Asked::Bootstrap(params) => {
                params.extensions.iter().filter_map(|extension| extension.value.as_ref()).next()
            }
        };
        Ok(any.map_or_else(|| Ok(Options::default()), Options::from_any)?)
    }

    fn answer(&self, address: String, bundle: &Path) -> Vec<u8> {
        match self {
            Asked::Bootstrap(_) => {
                BootstrapResult { version: 3, address, protocol: "ttrpc".into(), ..BootstrapResult::default() }
                    .encode_to_vec()
            }
            Asked::Options(_) if is_sandbox(bundle) => {
                serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string().into_bytes()
            }
            // Without a newline: daemons from 1.7 to 2.2 would take it for a part of the address.
            Asked::Options(_) => address.into_bytes(),
        }
    }
}

fn is_sandbox(bundle: &Path) -> bool {
    bundle.components().any(|part| part.as_os_str() == "io.containerd.sandbox.controller.v1.shim")
}

/// Starts the serving process. It gets the socket as standard input and nothing else of ours: the daemon waits until the
/// last copy of its pipes is closed.
fn spawn(args: &Args, asked: &Asked, options: &Options, listener: UnixListener) -> Result<(), Error> {
    let own = std::env::current_exe().doing(|| "finding this program".into())?;
    let mut command = Command::new(own);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", asked.daemon(args)]);
    command.arg("-publish-binary").arg(&args.publish_binary);
    command.args(args.debug.then_some("-debug"));
    if let Asked::Bootstrap(params) = asked
        && !params.containerd_ttrpc_address.is_empty()
    {
        command.env("TTRPC_ADDRESS", &params.containerd_ttrpc_address);
    }
    if std::env::var_os("SCHED_CORE").is_some() {
        // Inherited by the serving process, and by all that it starts.
        let scope = CoreSchedulingScope::ProcessGroup;
        create_core_scheduling_cookie(rustix::process::getpid(), scope)
            .doing(|| "making a core scheduling cookie".into())?;
    }
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log());
    let child = command.process_group(0).spawn().doing(|| "starting the serving process".into())?;
    let placed = place(options, Pid::from_child(&child));
    if placed.is_err() {
        let mut child = child;
        child.kill().doing(|| "ending the serving process".into())?;
        child.wait().doing(|| "ending the serving process".into())?;
    }
    placed
}

/// The daemon made this fifo and reads it. Opened for both, it neither waits for a reader nor breaks without one.
fn log() -> Stdio {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let fifo = File::options().read(true).write(true).custom_flags(flags).open("log");
    fifo.map_or_else(|_| Stdio::null(), Stdio::from) // not every daemon makes one
}

/// Puts the serving process where it is to be when memory gets short: in its own cgroup if one is named, and a step nearer
/// to being killed than the daemon.
fn place(options: &Options, pid: Pid) -> Result<(), Error> {
    let pid = pid.as_raw_nonzero().get().unsigned_abs();
    if !options.shim_cgroup.is_empty() {
        cgroup::join(&options.shim_cgroup, pid).doing(|| format!("joining shim_cgroup {}", options.shim_cgroup))?;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").doing(|| "reading /proc/self/oom_score_adj".into())?;
    let score = own.trim().parse().unwrap_or(0i32).saturating_add(1).min(1000);
    let file = format!("/proc/{pid}/oom_score_adj");
    Ok(fs::write(&file, score.to_string()).doing(|| format!("writing {file}"))?)
}

#[cfg(test)]
mod tests {
    use tare_proto::any;
    use tare_proto::containerd::runc::v1::Options as Runc;

    use super::*;

    fn args() -> Args {
        Args { namespace: "ns".into(), id: "one".into(), address: "/d.sock".into(), ..Args::default() }
    }

    fn answer(input: &[u8], bundle: &str) -> Vec<u8> {
        Asked::parse(input, &args()).unwrap().answer("unix:///s".into(), Path::new(bundle))
    }

    const TASK: &str = "/run/d/io.containerd.runtime.v2.task/ns/one";
    const SANDBOX: &str = "/run/d/io.containerd.sandbox.controller.v1.shim/ns/one";

    #[test]
    fn each_daemon_is_answered_in_its_dialect() {
        let params =
            BootstrapParams { instance_id: "one".into(), namespace: "ns".into(), ..BootstrapParams::default() };
        let result = BootstrapResult::decode(answer(&params.encode_to_vec(), TASK).as_slice()).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, "unix:///s", "ttrpc"));
        assert_eq!(answer(b"", TASK), b"unix:///s");
        let json: serde_json::Value = serde_json::from_slice(&answer(b"", SANDBOX)).unwrap();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}));
    }

    #[test]
    fn options_are_not_taken_for_parameters() {
        let options = any::pack("containerd.runc.v1.Options", &Runc { binary_name: "crun".into(), ..Runc::default() });
        let bytes = options.encode_to_vec();
        assert_eq!(answer(&bytes, TASK), b"unix:///s");
        assert_eq!(Asked::parse(&bytes, &args()).unwrap().options().unwrap().binary_name, "crun");
        let others =
            BootstrapParams { instance_id: "two".into(), namespace: "ns".into(), ..BootstrapParams::default() };
        assert!(matches!(Asked::parse(&others.encode_to_vec(), &args()), Ok(Asked::Options(_))));
    }
}
