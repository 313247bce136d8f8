//! Pods without a pause image, as a daemon makes them over the Sandbox service.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use tare_integration::programs;
use tare_proto::any;
use tare_proto::containerd::runtime::sandbox::v1 as sb;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::runtime::v1::{
    IdMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    SecurityProfile, UserNamespace,
};
use tare_proto::ttrpc::blocking::Client;
use tare_proto::ttrpc::{Code, Error};

use support::{Pod, call, call_of, connect, fill_root, gone, options_of};

fn sandbox<R: prost::Message + Default>(
    client: &mut Client,
    method: &str,
    message: &impl prost::Message,
) -> Result<R, Error> {
    call_of("containerd.runtime.sandbox.v1.Sandbox", client, method, message)
}

/// A pod on a runtime, with a shim that serves it; all of it goes when this is dropped.
struct Served {
    pod: Pod,
    id: String,
    bundle: PathBuf,
    runtime: PathBuf,
    socket: PathBuf,
    shim: u32,
    client: Client,
}

impl Served {
    fn start(runtime: &Path) -> Served {
        let pod = Pod::new();
        let id = pod.id("pod");
        let bundle = pod.dir.path().join(&id);
        fs::create_dir(&bundle).unwrap();
        let socket = pod.start_with(&id, &options_of(runtime).unwrap());
        let mut client = connect(&socket);
        let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
        Served { pod, id, bundle, runtime: runtime.into(), socket, shim: there.shim_pid, client }
    }

    fn create(&mut self, netns: &str, config: &PodSandboxConfig) -> Result<(), Error> {
        let request = sb::CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle.display().to_string(),
            netns_path: netns.into(),
            options: Some(any::pack("runtime.v1.PodSandboxConfig", config)),
            ..Default::default()
        };
        sandbox::<sb::CreateSandboxResponse>(&mut self.client, "CreateSandbox", &request).map(drop)
    }

    /// Returns the init's pid.
    fn run(&mut self, netns: &str, config: &PodSandboxConfig) -> u32 {
        self.create(netns, config).unwrap();
        let request = sb::StartSandboxRequest { sandbox_id: self.id.clone() };
        sandbox::<sb::StartSandboxResponse>(&mut self.client, "StartSandbox", &request).unwrap().pid
    }

    fn status(&mut self) -> sb::SandboxStatusResponse {
        let request = sb::SandboxStatusRequest { sandbox_id: self.id.clone(), verbose: true };
        sandbox(&mut self.client, "SandboxStatus", &request).unwrap()
    }

    /// A container of the pod that sleeps; returns its id and pid.
    fn container(&mut self, name: &str, namespaces: &serde_json::Value) -> (String, u32) {
        let id = self.pod.id(name);
        let config = serde_json::json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", "sleep 1000"],
                "env": ["PATH=/bin"]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": {"io.kubernetes.cri.sandbox-id": self.id},
            "linux": {"namespaces": namespaces},
        });
        let bundle = self.pod.bundle(&id, &config);
        fill_root(&bundle);
        let create = pb::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            options: options_of(&self.runtime),
            ..Default::default()
        };
        call::<pb::CreateTaskResponse>(&mut self.client, "Create", &create).unwrap();
        let start = pb::StartRequest { id: id.clone(), exec_id: String::new() };
        let pid = call::<pb::StartResponse>(&mut self.client, "Start", &start).unwrap().pid;
        (id, pid)
    }

    fn stop(&mut self) {
        let request = sb::StopSandboxRequest { sandbox_id: self.id.clone(), timeout_secs: 30 };
        sandbox::<sb::StopSandboxResponse>(&mut self.client, "StopSandbox", &request).unwrap();
    }

    /// Ends the shim with all that is left.
    fn shut_down(mut self) {
        let request = sb::ShutdownSandboxRequest { sandbox_id: self.id.clone() };
        sandbox::<sb::ShutdownSandboxResponse>(&mut self.client, "ShutdownSandbox", &request).unwrap();
        gone(self.shim);
        assert!(!self.socket.exists());
    }
}

/// A network namespace as a process has it; ended when dropped.
struct Netns(Child);

impl Netns {
    fn new(flags: &[&str]) -> Netns {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", "echo; exec sleep 1000"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Netns(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn namespace(pid: impl std::fmt::Display, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

fn pod_with(options: NamespaceOption) -> PodSandboxConfig {
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        seccomp: Some(SecurityProfile::default()), // the runtime's own
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    PodSandboxConfig { hostname: "a-pod".into(), linux: Some(linux), ..Default::default() }
}

/// Those that run on a machine with both kinds of cgroups, which crun refuses.
fn runtimes() -> [PathBuf; 2] {
    [programs::tare("tare").unwrap(), programs::peer("newer", "runc").unwrap()]
}

/// What clients join is the pod's, never the host's, and what a container joins is what the pod has.
#[test]
fn containers_join_a_pod_by_the_pid_that_the_sandbox_reports() {
    for runtime in runtimes() {
        eprintln!("{}", runtime.display());
        let netns = Netns::new(&["--net"]);
        let mut served = Served::start(&runtime);
        let pid = served.run(&netns.path(), &pod_with(NamespaceOption::default()));
        let status = served.status();
        assert_eq!((status.pid, status.state.as_str()), (pid, "SANDBOX_READY"));
        assert_ne!(pid, served.shim);
        for kind in ["pid", "ipc", "uts", "mnt", "net"] {
            assert_ne!(namespace(pid, kind), namespace("self", kind), "{kind}");
        }
        assert_eq!(namespace(pid, "net"), namespace(netns.0.id(), "net"));
        let join = |kind: &str, file: &str| serde_json::json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
        let joined = serde_json::json!([
            {"type": "mount"}, join("pid", "pid"), join("ipc", "ipc"), join("uts", "uts"), join("network", "net"),
        ]);
        let (_, inside) = served.container("inside", &joined);
        for kind in ["pid", "ipc", "uts", "net"] {
            assert_eq!(namespace(inside, kind), namespace(pid, kind), "{kind}");
        }
        let name = Command::new("nsenter").args(["-t", &pid.to_string(), "-u", "hostname"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&name.stdout), "a-pod\n");
        // Its PID namespace is the container's: who ends the pod's init ends all.
        served.stop();
        gone(inside);
        assert_eq!(served.status().state, "SANDBOX_NOTREADY");
        served.shut_down();
    }
}

#[test]
fn a_pod_of_the_node_s_namespaces_has_none_of_its_own() {
    let mut served = Served::start(&runtimes()[0]);
    let node = i32::from(NamespaceMode::Node);
    let pid = served.run("", &pod_with(NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() }));
    for kind in ["pid", "ipc", "uts", "net"] {
        assert_eq!(namespace(pid, kind), namespace("self", kind), "{kind}");
    }
    served.stop();
    served.shut_down();
}

/// With ids of its own, the pod lives in the user namespace that its network belongs to.
#[test]
fn a_pod_with_ids_of_its_own_owns_its_network() {
    let netns = Netns::new(&["--user", "--net"]);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", netns.0.id()), "0 100000 65536\n").unwrap();
    }
    let mut served = Served::start(&runtimes()[0]);
    let mapping = || vec![IdMapping { host_id: 100_000, container_id: 0, length: 65536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() };
    let options = NamespaceOption { userns_options: Some(user), ..Default::default() };
    let pid = served.run(&netns.path(), &pod_with(options));
    assert_eq!(namespace(pid, "user"), namespace(netns.0.id(), "user"));
    assert_eq!(namespace(pid, "net"), namespace(netns.0.id(), "net"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t100000\t"), "{status}");
    served.stop();
    served.shut_down();
}

/// An orphan's parent is the pod's init, and nothing of it stays.
#[test]
fn the_pod_s_init_reaps_and_needs_next_to_nothing() {
    let mut served = Served::start(&runtimes()[0]);
    let pid = served.run("", &pod_with(NamespaceOption::default()));
    let enter = ["-t", &pid.to_string(), "--pid", "sh", "-c", "(sleep 0.01 & echo $!) | cat"];
    for _ in 0..3 {
        assert!(Command::new("nsenter").args(enter).output().unwrap().status.success());
    }
    let children = format!("/proc/{pid}/task/{pid}/children");
    while !fs::read_to_string(&children).unwrap().is_empty() {}
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let resident: u32 = field("VmRSS:").trim_end_matches(" kB").parse().unwrap();
    assert!(resident <= 16, "{resident} kB");
    assert_eq!((field("CapEff:").as_str(), field("CapBnd:").as_str()), ("0000000000000000", "0000000000000000"));
    assert_eq!((field("Seccomp:").as_str(), field("NoNewPrivs:").as_str()), ("2", "1"));
    served.stop();
    served.shut_down();
}

#[test]
fn waiters_hear_how_the_init_ended_and_a_stopped_pod_can_be_asked_again() {
    let mut served = Served::start(&runtimes()[0]);
    let wait = sb::WaitSandboxRequest { sandbox_id: served.id.clone() };
    let error = sandbox::<sb::WaitSandboxResponse>(&mut served.client, "WaitSandbox", &wait).unwrap_err();
    assert_eq!(error.code, Code::NotFound as i32);
    let pid = served.run("", &pod_with(NamespaceOption::default()));
    let mut other = connect(&served.socket);
    let waiter = std::thread::spawn(move || sandbox::<sb::WaitSandboxResponse>(&mut other, "WaitSandbox", &wait));
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let exit = waiter.join().unwrap().unwrap();
    assert_eq!(exit.exit_status, 137);
    assert!(exit.exited_at.is_some());
    served.stop();
    served.stop();
    served.shut_down();
}

#[test]
fn what_cannot_be_is_refused_and_the_shim_ends_all_the_same() {
    let mut served = Served::start(&runtimes()[0]);
    let target = NamespaceOption { pid: NamespaceMode::Target.into(), ..Default::default() };
    let error = served.create("", &pod_with(target)).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument as i32, "{error}");
    assert!(error.message.starts_with("linux.security_context.namespace_options.pid: "), "{error}");
    let error = served.create("/nonexistent/net", &PodSandboxConfig::default()).unwrap_err();
    assert_eq!(error.message, "opening the network namespace /nonexistent/net: no such file or directory");
    served.create("", &PodSandboxConfig::default()).unwrap();
    let error = served.create("", &PodSandboxConfig::default()).unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists as i32, "{error}");
    served.shut_down(); // with a pod that was never started
}

/// The daemon calls `delete` for the sandbox only: the pod's containers go with it.
#[test]
fn a_killed_shim_takes_its_pod_along_when_the_daemon_cleans_up() {
    let mut served = Served::start(&runtimes()[0]);
    let pid = served.run("", &pod_with(NamespaceOption::default()));
    let (_, apart) = served.container("apart", &serde_json::json!([{"type": "mount"}, {"type": "pid"}]));
    call::<()>(&mut served.client, "Shutdown", &pb::ShutdownRequest::default()).unwrap(); // of the task: the pod is there
    kill_process(Pid::from_raw(served.shim.cast_signed()).unwrap(), Signal::KILL).unwrap();
    gone(served.shim);
    let out = served.pod.shim(&served.id, "delete");
    assert!(out.status.success(), "{out:?}");
    assert_eq!(pb::DeleteResponse::decode(out.stdout.as_slice()).unwrap().pid, pid);
    gone(apart);
    gone(pid);
    assert!(!served.socket.exists());
}
