//! What the shim makes of a container's cgroups: limits, counts, and kills for memory. On this machine's version, and on
//! version 2 in the QEMU guest, where this program runs itself.

mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prost::Message as _;
use prost_types::Any;
use tare_integration::programs;
use tare_proto::any;
use tare_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::io::containerd::cgroups::{v1, v2};
use tare_proto::ttrpc::blocking::Client;
use tare_proto::ttrpc::server::{Incoming, Server, reply};

use support::{Pod, call, config, connect, fill_root, options, shut_down};

/// A daemon as far as events go: it takes them and keeps their topics.
struct Listener {
    socket: PathBuf,
    topics: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn start(dir: &Path) -> Listener {
        let socket = dir.join("events.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let topics = Arc::new(Mutex::new(Vec::new()));
        let taken = topics.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, taken) = (client.unwrap(), taken.clone());
                std::thread::spawn(move || serve(&mut client, &taken));
            }
        });
        Listener { socket, topics }
    }

    /// All topics so far, once `topic` is among them.
    fn wait_for(&self, topic: &str) -> Vec<String> {
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let topics = self.topics.lock().unwrap().clone();
            if topics.iter().any(|there| there == topic) {
                return topics;
            }
            assert!(Instant::now() < limit, "no {topic} in {topics:?}");
            std::thread::yield_now();
        }
    }
}

fn serve(client: &mut (impl std::io::Read + std::io::Write), taken: &Mutex<Vec<String>>) {
    let (mut server, mut buffer) = (Server::default(), [0; 4096]);
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        server.push(&buffer[..length]);
        while let Some(Incoming::Request { stream, request }) = server.take() {
            let event = ForwardRequest::decode(request.payload.as_slice()).unwrap().envelope.unwrap();
            taken.lock().unwrap().push(event.topic);
            client.write_all(&reply(stream, Ok(Vec::new()))).unwrap();
        }
    }
}

/// A container with a cgroup and limits of its own, and whoever hears of it.
struct Served {
    id: String,
    socket: PathBuf,
    client: Client,
    listener: Listener,
    _pod: Pod,
}

impl Served {
    fn start(script: &str) -> Served {
        let pod = Pod::new();
        let id = pod.id("one");
        let mut config = config(script);
        config["linux"]["cgroupsPath"] = format!("/{id}").into();
        config["linux"]["resources"] = serde_json::json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}});
        let bundle = pod.bundle(&id, &config);
        fill_root(&bundle);
        let listener = Listener::start(pod.dir.path());
        let socket = pod.start_with_events(&id, &listener.socket);
        let mut client = connect(&socket);
        let create = pb::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            options: options(),
            ..Default::default()
        };
        call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap();
        let start = pb::StartRequest { id: id.clone(), ..Default::default() };
        call::<pb::StartResponse>(&mut client, "Start", &start).unwrap();
        Served { id, socket, client, listener, _pod: pod }
    }

    fn wait_and_delete(&mut self) -> u32 {
        let (id, exec_id) = (self.id.clone(), String::new());
        let wait = pb::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        let status = call::<pb::WaitResponse>(&mut self.client, "Wait", &wait).unwrap().exit_status;
        call::<pb::DeleteResponse>(&mut self.client, "Delete", &pb::DeleteRequest { id, exec_id }).unwrap();
        status
    }
}

/// The limit, the use and the number of processes, of either version's message.
fn counts(stats: &Any) -> (u64, u64, u64) {
    if let Some(metrics) = any::unpack::<v1::Metrics>(stats, "io.containerd.cgroups.v1.Metrics").unwrap() {
        let memory = metrics.memory.unwrap().usage.unwrap();
        return (memory.limit, memory.usage, metrics.pids.unwrap().current);
    }
    let metrics: v2::Metrics = any::unpack(stats, "io.containerd.cgroups.v2.Metrics").unwrap().unwrap();
    let memory = metrics.memory.unwrap();
    (memory.usage_limit, memory.usage, metrics.pids.unwrap().current)
}

#[test]
fn limits_are_changed_and_counted_while_the_container_runs() {
    let mut served = Served::start("sleep 1000 & wait");
    let stats = pb::StatsRequest { id: served.id.clone() };
    let before: pb::StatsResponse = call(&mut served.client, "Stats", &stats).unwrap();
    assert_eq!(counts(before.stats.as_ref().unwrap()).0, 64 << 20);
    let limit = serde_json::json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}});
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
    let resources = Some(Any { type_url, value: limit.to_string().into_bytes() });
    let update = pb::UpdateTaskRequest { id: served.id.clone(), resources, ..Default::default() };
    call::<()>(&mut served.client, "Update", &update).unwrap();
    let after: pb::StatsResponse = call(&mut served.client, "Stats", &stats).unwrap();
    let (limit, usage, processes) = counts(after.stats.as_ref().unwrap());
    assert_eq!(limit, 32 << 20);
    assert!(usage > 0 && (1..=2).contains(&processes), "{usage} bytes, {processes} processes");
    let kill = pb::KillRequest { id: served.id.clone(), signal: 9, ..Default::default() };
    call::<()>(&mut served.client, "Kill", &kill).unwrap();
    assert_eq!(served.wait_and_delete(), 137);
    shut_down(&served.socket);
}

/// Who reads of the exit wants to know why: the kill is told before it.
#[test]
fn a_kill_for_memory_is_told_before_the_exit() {
    // tail keeps a line until it has read its end.
    let mut served = Served::start("exec tail -n 1 < /dev/zero");
    assert_eq!(served.wait_and_delete(), 137);
    let topics = served.listener.wait_for("/tasks/delete");
    let at = |topic: &str| topics.iter().position(|there| there == topic).unwrap_or_else(|| panic!("{topics:?}"));
    assert!(at("/tasks/oom") < at("/tasks/exit"), "{topics:?}");
    assert_eq!(topics[..2], ["/tasks/create", "/tasks/start"]);
    assert_eq!(topics.last().unwrap(), "/tasks/delete");
    shut_down(&served.socket);
}

#[test]
fn all_of_it_holds_on_version_2() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    for (from, to) in [
        (programs::tare("tare").unwrap(), "installed/bin/tare"),
        (programs::peer("bookworm", "busybox").unwrap(), "peers/bookworm/usr/bin/busybox"),
    ] {
        fs::create_dir_all(target.join(to).parent().unwrap()).unwrap();
        fs::copy(from, target.join(to)).unwrap();
    }
    fs::copy(std::env::current_exe().unwrap(), dir.path().join("cgroups")).unwrap();
    let shim = Path::new(env!("CARGO_BIN_EXE_containerd-shim-tare-v2"));
    fs::copy(shim, dir.path().join("shim")).unwrap();
    // Bundles lie in /root: the guest's /tmp lets no device be opened.
    let script = format!(
        "set -e; cp -a /share/box /root; mkdir -p {0}; cp /root/box/shim {1}; mount | grep -q cgroup2; \
         export CARGO_TARGET_DIR=/root/box/target TMPDIR=/root/box; cd /root/box; \
         for test in limits_are_changed_and_counted_while_the_container_runs a_kill_for_memory_is_told_before_the_exit; do \
         ./cgroups --exact $test; done",
        shim.parent().unwrap().display(),
        shim.display()
    );
    let mut run = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration/guest/run"));
    run.args(["--no-systemd", "--timeout", "400", "--share", &format!("{}=box", dir.path().display())]);
    let output = run.args(["--", "bash", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("test result: ok. 1 passed").count(), 2, "{said}");
}
