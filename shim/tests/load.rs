//! Many of everything, and clients that mean no good.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost_types::Any;
use tare_integration::programs;
use tare_proto::containerd::runc::v1::Options;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::ttrpc::blocking::Client;
use tare_proto::ttrpc::frame;
use tare_proto::{any, ttrpc};

use support::{Pod, TASK, call, config, connect, fill_root, gone, options, shut_down};

/// A shim with one container that sleeps.
struct Served {
    pod: Pod,
    id: String,
    socket: PathBuf,
    client: Client,
    shim: u32,
}

impl Served {
    fn start(change: impl FnOnce(&str, &mut serde_json::Value)) -> Served {
        let pod = Pod::new();
        let id = pod.id("one");
        let mut config = config("sleep 1000 & wait");
        change(&id, &mut config);
        let bundle = pod.bundle(&id, &config);
        fill_root(&bundle);
        let socket = pod.start(&id);
        let mut client = connect(&socket);
        create(&mut client, &id, &bundle, options());
        let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
        Served { pod, id, socket, client, shim: there.shim_pid }
    }

    fn add_exec(&mut self, exec: &str, script: &str) -> u32 {
        let spec = serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"]
        });
        let request = pb::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            spec: Some(Any { type_url: "process".into(), value: spec.to_string().into_bytes() }),
            ..Default::default()
        };
        call::<()>(&mut self.client, "Exec", &request).unwrap();
        let start = pb::StartRequest { id: self.id.clone(), exec_id: exec.into() };
        call::<pb::StartResponse>(&mut self.client, "Start", &start).unwrap().pid
    }

    fn collect(&mut self, exec: &str) -> u32 {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let wait = pb::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        let status = call::<pb::WaitResponse>(&mut self.client, "Wait", &wait).unwrap().exit_status;
        call::<pb::DeleteResponse>(&mut self.client, "Delete", &pb::DeleteRequest { id, exec_id }).unwrap();
        status
    }

    fn kill(&mut self) {
        let kill = pb::KillRequest { id: self.id.clone(), signal: 9, ..Default::default() };
        call::<()>(&mut self.client, "Kill", &kill).unwrap();
        assert_eq!(self.collect(""), 137);
    }

    /// Ends the container and the shim.
    fn end(mut self) {
        self.kill();
        shut_down(&self.socket);
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.shim)).unwrap().count()
    }

    /// Kilobytes of memory that are its own.
    fn memory(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.shim)).unwrap();
        let field = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        field.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn create(client: &mut Client, id: &str, bundle: &Path, options: Option<Any>) -> u32 {
    let create =
        pb::CreateTaskRequest { id: id.into(), bundle: bundle.display().to_string(), options, ..Default::default() };
    call::<pb::CreateTaskResponse>(client, "Create", &create).unwrap();
    let start = pb::StartRequest { id: id.into(), exec_id: String::new() };
    call::<pb::StartResponse>(client, "Start", &start).unwrap().pid
}

#[test]
fn execs_one_after_another_and_all_at_once_leave_nothing_behind() {
    let mut served = Served::start(|_, _| {});
    let run = |served: &mut Served, count: u32| {
        for number in 0..count {
            served.add_exec("e", &format!("exit {}", number % 100));
            assert_eq!(served.collect("e"), number % 100);
        }
    };
    run(&mut served, 30);
    let (descriptors, memory) = (served.descriptors(), served.memory());
    run(&mut served, 70);
    for number in 0..100 {
        served.add_exec(&format!("e{number}"), &format!("exit {number}"));
    }
    for number in 0..100 {
        assert_eq!(served.collect(&format!("e{number}")), number);
    }
    assert_eq!(served.descriptors(), descriptors);
    assert!(served.memory() <= memory + 256, "{memory} kB became {} kB", served.memory());
    let tasks = fs::read_dir(format!("/proc/{}/task", served.shim)).unwrap().count();
    assert_eq!(tasks, 1, "one thread");
    served.end();
}

#[test]
fn a_pod_of_fifty_containers_is_served_by_one_thread() {
    let mut served = Served::start(|_, _| {});
    let ids: Vec<String> = (0..49).map(|number| served.pod.id(&format!("c{number}"))).collect();
    for id in &ids {
        let mut config = config("exec sleep 1000");
        config["root"]["path"] = served.pod.dir.path().join(&served.id).join("rootfs").display().to_string().into();
        let bundle = served.pod.bundle(id, &config);
        create(&mut served.client, id, &bundle, options());
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", served.shim)).unwrap().count();
    assert_eq!(tasks, 1);
    for id in &ids {
        let kill = pb::KillRequest { id: id.clone(), signal: 9, ..Default::default() };
        call::<()>(&mut served.client, "Kill", &kill).unwrap();
    }
    for id in &ids {
        let (id, exec_id) = (id.clone(), String::new());
        let wait = pb::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        assert_eq!(call::<pb::WaitResponse>(&mut served.client, "Wait", &wait).unwrap().exit_status, 137);
        call::<pb::DeleteResponse>(&mut served.client, "Delete", &pb::DeleteRequest { id, exec_id }).unwrap();
    }
    served.end();
}

/// Whatever they send, or do not send, the next client is answered.
#[test]
fn clients_that_mean_no_good_are_let_go() {
    let mut served = Served::start(|_, _| {});
    let (descriptors, memory) = (served.descriptors(), served.memory());
    let open = || UnixStream::connect(&served.socket).unwrap();
    let idle: Vec<UnixStream> = (0..500).map(|_| open()).collect();
    let mut half = open();
    half.write_all(&[0, 0, 0, 200, 0, 0, 0, 1, 1, 0, 7, 7]).unwrap();
    let mut garbage = open();
    let noise: Vec<u8> = (0..100_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let _ = garbage.write_all(&noise); // it may have been let go by then
    let mut long = open();
    long.write_all(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0]).unwrap();
    let mut answer = [0; 10];
    long.read_exact(&mut answer).unwrap();
    assert_eq!((answer[7], answer[8]), (1, frame::RESPONSE), "a frame that is too long is answered");
    // One that asks and never reads: its answers are kept up to a bound, then it is let go.
    let mut greedy = open();
    let state = pb::StateRequest { id: "x".repeat(60_000), ..Default::default() };
    for number in 0..1000u32 {
        let data = ttrpc::request(TASK, "State", prost::Message::encode_to_vec(&state), "ns");
        if greedy.write_all(&frame::encode(2 * number + 1, frame::REQUEST, &data)).is_err() {
            break;
        }
    }
    let request = pb::StateRequest { id: served.id.clone(), ..Default::default() };
    call::<pb::StateResponse>(&mut served.client, "State", &request).unwrap();
    greedy.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let read = std::io::copy(&mut greedy, &mut std::io::sink()).unwrap();
    assert!(read < 32 << 20, "{read} bytes were kept for it");
    drop((idle, half, garbage, long, greedy));
    while served.descriptors() > descriptors {}
    assert!(served.memory() <= memory + 512, "{memory} kB became {} kB", served.memory());
    call::<pb::StateResponse>(&mut served.client, "State", &request).unwrap();
    served.end();
}

/// Without a PID namespace of its own, nothing in the kernel ends the rest with the first process.
#[test]
fn the_end_of_the_first_process_takes_execs_along_and_their_exits_are_told_first() {
    let in_host = |id: &str, config: &mut serde_json::Value| {
        config["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
        config["linux"]["cgroupsPath"] = format!("/{id}").into();
    };
    let mut served = Served::start(in_host);
    let exec = served.add_exec("e", "sleep 1000 & wait");
    let mut other = connect(&served.socket);
    let wait = pb::WaitRequest { id: served.id.clone(), exec_id: "e".into() };
    let waiter = std::thread::spawn(move || call::<pb::WaitResponse>(&mut other, "Wait", &wait).unwrap());
    served.kill();
    assert!(waiter.is_finished() || waiter.join().unwrap().exit_status == 137);
    gone(exec);
    // Orphans became children of the shim; it has reaped them.
    let children = format!("/proc/{0}/task/{0}/children", served.shim);
    while !fs::read_to_string(&children).unwrap().is_empty() {}
    shut_down(&served.socket);
}

/// The options' cgroup is the shim's, and only the shim's.
#[test]
fn a_shim_is_put_into_the_cgroup_that_the_options_name() {
    let pod = Pod::new();
    let id = pod.id("placed");
    let bundle = pod.bundle(&id, &serde_json::json!({}));
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&id));
    let cgroup =
        roots.iter().find(|path| path.parent().is_some_and(|root| root.join("cgroup.procs").exists())).unwrap();
    fs::create_dir(cgroup).unwrap();
    let options = Options {
        shim_cgroup: format!("/{id}"),
        binary_name: programs::tare("tare").unwrap().display().to_string(),
        ..Default::default()
    };
    let socket = pod.start_with(&id, &any::pack("containerd.runc.v1.Options", &options));
    let mut client = connect(&socket);
    let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), there.shim_pid.to_string(), "{}", bundle.display());
    shut_down(&socket);
    fs::remove_dir(cgroup).unwrap();
}
