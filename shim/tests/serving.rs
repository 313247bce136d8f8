//! The shim alone, called as a daemon calls it: groups, refusals, and what a crash leaves.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use prost::Message as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tare_integration::inventory::Inventory;
use tare_integration::programs;
use tare_proto::any;
use tare_proto::containerd::runc::v1::CheckpointOptions;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::containerd::types::Mount;
use tare_proto::ttrpc::{Code, Error};

use support::*;

#[test]
fn one_shim_serves_a_pod_on_a_socket_that_only_its_owner_may_open() {
    let pod = Pod::new();
    let grouped = serde_json::json!({"annotations": {"io.kubernetes.cri.sandbox-id": pod.id("sandbox")}});
    let (a, b, alone) = (pod.id("a"), pod.id("b"), pod.id("alone"));
    pod.bundle(&a, &grouped);
    pod.bundle(&b, &grouped);
    pod.bundle(&alone, &serde_json::json!({}));
    let (first, second, third) = (pod.start(&a), pod.start(&b), pod.start(&alone));
    assert_eq!(first, second);
    assert_ne!(first, third);
    assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(first.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    shut_down(&first);
    shut_down(&third);
}

/// Called again by itself, as another group: what it sends is not read.
#[test]
fn only_the_shim_s_own_user_and_group_are_served() {
    if let Some(socket) = std::env::var_os("TARE_TEST_SOCKET") {
        let mut client = connect(Path::new(&socket));
        let error = call::<pb::ConnectResponse>(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap_err();
        assert_eq!(error.code, Code::Unavailable as i32);
        return;
    }
    let pod = Pod::new();
    let id = pod.id("private");
    pod.bundle(&id, &serde_json::json!({}));
    let socket = pod.start(&id);
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "only_the_shim_s_own_user_and_group_are_served"])
        .env("TARE_TEST_SOCKET", &socket)
        .gid(65534)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(!fs::read_to_string("/proc/net/unix").unwrap().contains("@/run/containerd/s"), "no socket is abstract");
    shut_down(&socket);
}

#[test]
fn what_is_not_there_is_refused_in_the_words_that_clients_know() {
    let pod = Pod::new();
    let id = pod.id("none");
    pod.bundle(&id, &serde_json::json!({}));
    let socket = pod.start(&id);
    let mut client = connect(&socket);
    let refused = |result: Result<Vec<u8>, Error>, code: Code, text: &str| {
        let error = result.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code as i32, text));
    };
    refused(client.call("a.Service", "Create", vec![], ""), Code::Unimplemented, "service a.Service");
    refused(client.call(TASK, "Dance", vec![], ""), Code::Unimplemented, "method Dance");
    for method in
        ["State", "Start", "Kill", "Wait", "Delete", "Pids", "Pause", "Resume", "Stats", "Update", "ResizePty"]
    {
        refused(client.call(TASK, method, vec![], ""), Code::NotFound, "container not created: : not found");
    }
    let outside = pb::CreateTaskRequest { id: "../out".into(), bundle: "/".into(), ..Default::default() };
    let error = call::<pb::CreateTaskResponse>(&mut client, "Create", &outside).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument as i32);
    let restored =
        pb::CreateTaskRequest { id: id.clone(), bundle: "/b".into(), checkpoint: "/c".into(), ..Default::default() };
    let error = call::<pb::CreateTaskResponse>(&mut client, "Create", &restored).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::InvalidArgument as i32, "checkpoint \"/c\": there is no such folder")
    );
    shut_down(&socket);
}

#[test]
fn a_container_lives_from_create_to_delete_and_waiters_hear_its_code() {
    // crun refuses machines with both kinds of cgroups.
    for runtime in [programs::tare("tare").unwrap(), programs::peer("newer", "runc").unwrap()] {
        eprintln!("{}", runtime.display());
        live(&runtime);
    }
}

fn live(runtime: &Path) {
    let pod = Pod::new();
    let id = pod.id("life");
    let bundle = pod.bundle(&id, &config("exit 7"));
    fill_root(&bundle);
    let socket = pod.start(&id);
    let mut client = connect(&socket);
    let log = pod.dir.path().join("deep/log");
    let create = pb::CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.display().to_string(),
        stdout: format!("file://{}", log.display()),
        options: options_of(runtime),
        ..Default::default()
    };
    let created: pb::CreateTaskResponse = call(&mut client, "Create", &create).unwrap();
    let twice = call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap_err();
    assert_eq!(twice.code, Code::AlreadyExists as i32);
    let (of, exec_id) = (|| id.clone(), String::new);
    call::<()>(&mut client, "Shutdown", &pb::ShutdownRequest { id: of(), now: true }).unwrap();
    let started: pb::StartResponse =
        call(&mut client, "Start", &pb::StartRequest { id: of(), exec_id: exec_id() }).unwrap();
    assert_eq!(started.pid, created.pid);
    let ended: pb::WaitResponse = call(&mut client, "Wait", &pb::WaitRequest { id: of(), exec_id: exec_id() }).unwrap();
    assert_eq!(ended.exit_status, 7);
    let again = call::<()>(&mut client, "Kill", &pb::KillRequest { id: of(), signal: 9, ..Default::default() });
    assert_eq!(again.unwrap_err().message, "process already finished: not found");
    let deleted: pb::DeleteResponse =
        call(&mut client, "Delete", &pb::DeleteRequest { id: of(), exec_id: exec_id() }).unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (created.pid, 7));
    shut_down(&socket);
}

/// The daemon calls `delete` when the connection is lost, whenever that was, and perhaps twice.
#[test]
fn delete_after_a_crash_cleans_up_however_far_it_had_come() {
    let pod = Pod::new();
    let (fresh, created) = (pod.id("fresh"), pod.id("created"));
    pod.bundle(&fresh, &serde_json::json!({}));
    let bundle = pod.bundle(&created, &config("exit 0"));
    fill_root(&bundle);
    let socket = pod.start(&created);
    let mut client = connect(&socket);
    let create = pb::CreateTaskRequest {
        id: created.clone(),
        bundle: bundle.display().to_string(),
        options: options(),
        ..Default::default()
    };
    let pid = call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap().pid;
    let init = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
    let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
    kill_process(Pid::from_raw(there.shim_pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    for id in [&created, &created, &fresh] {
        let out = pod.shim(id, "delete");
        assert!(out.status.success(), "{out:?}");
        let answer = pb::DeleteResponse::decode(out.stdout.as_slice()).unwrap();
        assert_eq!(answer.exit_status, 137);
        assert_eq!(answer.pid, if id == &created { pid } else { 0 });
    }
    poll(&mut [PollFd::new(&init, PollFlags::IN)], None).unwrap();
    assert!(!socket.exists());
}

/// A runtime that does as told by argv, with the words that it was called with in `calls`: `checkpoint` ends the process
/// where it is asked to, `restore` starts the bundle's container again.
fn runtime_with_checkpoints(dir: &Path) -> PathBuf {
    let (path, calls) = (dir.join("rt"), dir.join("calls"));
    let script = format!(
        r#"#!/bin/sh
echo "$@" >> {calls}
global="$1 $2 $3 $4 $5 $6"
case " $* " in
*" checkpoint "*--leave-running*) ;;
*" checkpoint "*) for id in "$@"; do :; done; exec {tare} $global kill "$id" KILL ;;
*" restore "*)
    shift 6
    while [ $# -gt 1 ]; do
        case "$1" in --bundle) bundle=$2 ;; --pid-file) pid=$2 ;; esac
        shift
    done
    exec {tare} $global run --detach --bundle "$bundle" --pid-file "$pid" "$1" ;;
*) exec {tare} "$@" ;;
esac
"#,
        calls = calls.display(),
        tare = programs::tare("tare").unwrap().display(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_container_is_checkpointed_and_another_restored_from_it() {
    let pod = Pod::new();
    let runtime = runtime_with_checkpoints(pod.dir.path());
    let (id, images) = (pod.id("point"), pod.dir.path().join("images"));
    fs::create_dir(&images).unwrap();
    let bundle = pod.bundle(&id, &config("exec sleep 1000"));
    fill_root(&bundle);
    let socket = pod.start(&id);
    let mut client = connect(&socket);
    let mut create = pb::CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.display().to_string(),
        options: options_of(&runtime),
        ..Default::default()
    };
    let start = pb::StartRequest { id: id.clone(), ..Default::default() };
    let wait = pb::WaitRequest { id: id.clone(), ..Default::default() };
    let delete = pb::DeleteRequest { id: id.clone(), ..Default::default() };
    let mut checkpoint =
        pb::CheckpointTaskRequest { id: id.clone(), path: images.display().to_string(), options: None };
    call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap();
    let early = call::<()>(&mut client, "Checkpoint", &checkpoint).unwrap_err();
    assert_eq!(early.message, "cannot checkpoint a created container: failed precondition");
    call::<pb::StartResponse>(&mut client, "Start", &start).unwrap();
    call::<()>(&mut client, "Checkpoint", &checkpoint).unwrap();
    let asked = CheckpointOptions { exit: true, ..Default::default() };
    checkpoint.options = Some(any::pack("containerd.runc.v1.CheckpointOptions", &asked));
    call::<()>(&mut client, "Checkpoint", &checkpoint).unwrap();
    assert_eq!(call::<pb::WaitResponse>(&mut client, "Wait", &wait).unwrap().exit_status, 137);
    call::<pb::DeleteResponse>(&mut client, "Delete", &delete).unwrap();

    create.checkpoint = images.display().to_string();
    assert_eq!(call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap().pid, 0, "nothing runs yet");
    call::<pb::DeleteResponse>(&mut client, "Delete", &delete).unwrap();
    call::<pb::CreateTaskResponse>(&mut client, "Create", &create).unwrap();
    let pid = call::<pb::StartResponse>(&mut client, "Start", &start).unwrap().pid;
    let state = pb::StateRequest { id: id.clone(), ..Default::default() };
    assert_eq!(call::<pb::StateResponse>(&mut client, "State", &state).unwrap().pid, pid);
    call::<()>(&mut client, "Kill", &pb::KillRequest { id: id.clone(), signal: 9, ..Default::default() }).unwrap();
    assert_eq!(call::<pb::WaitResponse>(&mut client, "Wait", &wait).unwrap().exit_status, 137);
    call::<pb::DeleteResponse>(&mut client, "Delete", &delete).unwrap();
    shut_down(&socket);
    let calls = fs::read_to_string(pod.dir.path().join("calls")).unwrap();
    let place = format!("--image-path {} --work-path {}/work", images.display(), bundle.display());
    for words in [
        format!("checkpoint {place} --leave-running {id}"),
        format!("checkpoint {place} {id}"),
        format!("restore --detach {place} --bundle {0} --pid-file {0}/init.pid {id}", bundle.display()),
    ] {
        assert!(calls.lines().any(|line| line.ends_with(&words)), "{words}\n{calls}");
    }
}

#[test]
fn a_daemon_that_knows_the_pod_s_shim_is_told_it_and_no_other_is_started() {
    let pod = Pod::new();
    let id = pod.id("known");
    let bundle = pod.bundle(&id, &serde_json::json!({}));
    let options =
        tare_proto::containerd::runc::v1::Options { task_api_address: "unix:///pod".into(), ..Default::default() };
    let input = pod.dir.path().join("input");
    fs::write(&input, any::pack("containerd.runc.v1.Options", &options).encode_to_vec()).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_containerd-shim-tare-v2"))
        .args(["-namespace", "tare-serving", "-id", &id, "-address", "/nonexistent", "start"])
        .current_dir(&bundle)
        .stdin(fs::File::open(&input).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "unix:///pod", "{out:?}");
}

/// Whatever the shim was doing when it was killed, the daemon's `delete` finds it and undoes it.
#[test]
fn a_shim_that_is_killed_in_the_middle_of_a_call_leaves_nothing() {
    let pod = Pod::new();
    let source = pod.dir.path().join("root");
    fs::create_dir_all(source.join("proc")).unwrap();
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::copy(programs::peer("bookworm", "busybox").unwrap(), source.join("bin/sh")).unwrap();
    for delay in 0..24 {
        let id = pod.id(&format!("cut{delay}"));
        let bundle = pod.bundle(&id, &config("exec sleep 1000"));
        let socket = pod.start(&id);
        let mut client = connect(&socket);
        let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest::default()).unwrap();
        let root = Mount {
            r#type: "bind".into(),
            source: source.display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        let create = pb::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: vec![root],
            options: options(),
            ..Default::default()
        };
        let start = pb::StartRequest { id: id.clone(), ..Default::default() };
        let caller = std::thread::spawn(move || {
            let _ = call::<pb::CreateTaskResponse>(&mut client, "Create", &create);
            let _ = call::<pb::StartResponse>(&mut client, "Start", &start);
        });
        std::thread::sleep(Duration::from_micros(500 * delay)); // a sweep over the calls, not a wait
        kill_process(Pid::from_raw(there.shim_pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        caller.join().unwrap();
        gone(there.shim_pid);
        let out = pod.shim(&id, "delete");
        assert!(out.status.success(), "after {delay}: {out:?}");
        let left = Inventory::settled(&[&id]);
        assert!(left.is_empty(), "after {delay}: {left:#?}");
        assert!(!Path::new("/run/tare/tare-serving").join(&id).exists(), "after {delay}");
    }
}
