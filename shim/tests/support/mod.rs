//! The shim called as a daemon calls it: bundles, `start`, and calls over its socket.

#![allow(dead_code)] // each file of tests uses a part

pub mod node;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tare_integration::programs;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::ttrpc::Error;
use tare_proto::ttrpc::blocking::Client;
use tempfile::TempDir;

pub const TASK: &str = "containerd.task.v3.Task";

/// One namespace of one daemon that is not there, and the bundles in it.
pub struct Pod {
    pub dir: TempDir,
}

impl Pod {
    pub fn new() -> Pod {
        Pod { dir: tempfile::Builder::new().prefix("tare-serving.").tempdir().unwrap() }
    }

    /// A name that no other test uses: the runtime's root is shared.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.dir.path().extension().unwrap().to_string_lossy())
    }

    pub fn bundle(&self, id: &str, config: &serde_json::Value) -> PathBuf {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    fn command(&self, id: &str, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-tare-v2"));
        command.args(["-namespace", "tare-serving", "-publish-binary", "", "-id", id, "-address"]);
        command.arg(self.dir.path().join("d.sock")).arg(verb).env_remove("TTRPC_ADDRESS");
        command.current_dir(self.dir.path().join(id)).stdin(Stdio::null());
        command
    }

    pub fn shim(&self, id: &str, verb: &str) -> Output {
        self.command(id, verb).output().unwrap()
    }

    /// Starts a shim that tells its events at a socket.
    pub fn start_with_events(&self, id: &str, events: &Path) -> PathBuf {
        let out = self.command(id, "start").env("TTRPC_ADDRESS", events).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        PathBuf::from(String::from_utf8(out.stdout).unwrap().strip_prefix("unix://").unwrap())
    }

    /// Starts a shim with options on standard input, as daemons give them.
    pub fn start_with(&self, id: &str, options: &prost_types::Any) -> PathBuf {
        let mut start = self.command(id, "start").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        start.stdin.take().unwrap().write_all(&prost::Message::encode_to_vec(options)).unwrap();
        let out = start.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
        PathBuf::from(String::from_utf8(out.stdout).unwrap().strip_prefix("unix://").unwrap())
    }

    /// Starts a shim for the bundle of `id`, or finds its group's.
    pub fn start(&self, id: &str) -> PathBuf {
        let out = self.shim(id, "start");
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        PathBuf::from(String::from_utf8(out.stdout).unwrap().strip_prefix("unix://").unwrap())
    }
}

pub fn connect(socket: &Path) -> Client {
    Client::connect(socket, Duration::from_secs(30)).unwrap()
}

pub fn call<R: prost::Message + Default>(
    client: &mut Client,
    method: &str,
    message: &impl prost::Message,
) -> Result<R, Error> {
    call_of(TASK, client, method, message)
}

pub fn call_of<R: prost::Message + Default>(
    service: &str,
    client: &mut Client,
    method: &str,
    message: &impl prost::Message,
) -> Result<R, Error> {
    let answer = client.call(service, method, message.encode_to_vec(), "tare-serving")?;
    Ok(R::decode(answer.as_slice()).unwrap())
}

/// Waits for the end of a process that is not our child.
pub fn gone(pid: u32) {
    if let Ok(process) = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()) {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    }
}

/// Has the shim end, as the daemon does when the last task is gone, and waits for it.
pub fn shut_down(socket: &Path) {
    let mut client = connect(socket);
    let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
    let shim = pidfd_open(Pid::from_raw(there.shim_pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
    call::<()>(&mut client, "Shutdown", &pb::ShutdownRequest::default()).unwrap();
    poll(&mut [PollFd::new(&shim, PollFlags::IN)], None).unwrap();
    assert!(!socket.exists(), "the socket goes with the shim");
}

/// A container of busybox that runs `script`, without a cgroup of its own to keep the machine's as they are.
pub fn config(script: &str) -> serde_json::Value {
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| serde_json::json!({"type": kind}));
    serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces},
    })
}

pub fn fill_root(bundle: &Path) {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(bundle.join("rootfs/proc")).unwrap();
    fs::create_dir_all(&bin).unwrap();
    fs::copy(programs::peer("bookworm", "busybox").unwrap(), bin.join("sh")).unwrap();
}

/// The runtime's options: the one that was installed.
pub fn options() -> Option<prost_types::Any> {
    options_of(&programs::tare("tare").unwrap())
}

pub fn options_of(runtime: &Path) -> Option<prost_types::Any> {
    let binary_name = runtime.display().to_string();
    let options = tare_proto::containerd::runc::v1::Options { binary_name, ..Default::default() };
    Some(tare_proto::any::pack("containerd.runc.v1.Options", &options))
}
