//! Under Debian's own containerd, driven by its own `ctr`: each promise on two releases, under our name and installed
//! under the name of containerd's own shim. The programs under test are those that `cargo xtask test` installs.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tare_integration::programs;
use tare_proto::containerd::task::v3 as pb;

use support::node::{Node, gone, text};

/// Asks the same promise of containerd's two releases, and once under the name of its own shim.
fn everywhere(promise: impl Fn(&Node)) {
    let own_name = tempfile::tempdir().unwrap();
    let renamed = own_name.path().join("containerd-shim-runc-v2");
    fs::copy(programs::tare("containerd-shim-tare-v2").unwrap(), &renamed).unwrap();
    std::os::unix::fs::symlink(programs::tare("tare").unwrap(), own_name.path().join("tare")).unwrap();
    for (tree, runtime) in [
        ("bookworm", "io.containerd.tare.v2"),
        ("newer", "io.containerd.tare.v2"),
        ("newer", renamed.to_str().unwrap()),
    ] {
        eprintln!("containerd of {tree}, runtime {runtime}");
        let node = Node::start(tree, runtime);
        promise(&node);
        node.end();
    }
}

#[test]
fn output_and_exit_code_of_a_foreground_run_come_back() {
    everywhere(|node| {
        let id = node.id("run");
        let out = node.run(&["--rm"], &id, &["sh", "-c", "echo out; echo err >&2; exit 3"]).output().unwrap();
        assert_eq!(out.status.code(), Some(3), "{}\n{}", text(&out), node.daemon.log());
        assert_eq!(String::from_utf8_lossy(&out.stdout), "out\n");
        assert!(String::from_utf8_lossy(&out.stderr).starts_with("err\n"), "{}", text(&out));
    });
}

#[test]
fn a_detached_container_is_entered_paused_killed_and_removed() {
    everywhere(|node| {
        let id = node.detached("life", &[], &["sleep", "1000"]);
        assert_eq!(node.ok(&["task", "exec", "--exec-id", "a", &id, "echo", "inside"]), "inside\n");
        let out = node.ctr(&["task", "exec", "--exec-id", "b", &id, "sh", "-c", "exit 4"]).output().unwrap();
        assert_eq!(out.status.code(), Some(4), "{}", text(&out));
        node.ok(&["task", "pause", &id]);
        assert!(node.ok(&["task", "ls"]).contains("PAUSED"));
        node.ok(&["task", "resume", &id]);
        assert!(node.ok(&["task", "ls"]).contains("RUNNING"));
        assert_eq!(node.ok(&["task", "ps", &id]).lines().count(), 2);
        assert!(node.ok(&["task", "metrics", &id]).contains(&id));
        node.remove(&id);
    });
}

#[test]
fn input_of_an_exec_ends_when_the_client_s_does() {
    everywhere(|node| {
        let id = node.detached("input", &[], &["sleep", "1000"]);
        let mut exec = node.ctr(&["task", "exec", "--exec-id", "a", &id, "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        exec.stdin.take().unwrap().write_all(b"through\n").unwrap();
        let out = exec.wait_with_output().unwrap();
        assert_eq!(node.check(&["task", "exec", "cat"], out), "through\n");
        node.remove(&id);
    });
}

#[test]
fn a_terminal_is_one_and_carries_both_ways() {
    everywhere(|node| {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut run = node.run(&["--rm", "-t"], &node.id("tty"), &["sh", "-c", "tty; read x; echo got $x; exit 5"]);
        run.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let mut child = run.spawn().unwrap();
        drop(run); // and with it our copies of the terminal's side
        let mut master = fs::File::from(master);
        master.write_all(b"typed\n").unwrap();
        let mut shown = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            shown.extend_from_slice(&buffer[..length]);
        }
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("/dev/pts/") && shown.contains("got typed"), "{shown}");
        assert_eq!(child.wait().unwrap().code(), Some(5), "{shown}");
    });
}

#[test]
fn a_missing_program_is_told_by_name_and_leaves_nothing() {
    everywhere(|node| {
        let id = node.id("missing");
        let out = node.run(&["--rm"], &id, &["nope"]).output().unwrap();
        assert!(!out.status.success());
        assert!(text(&out).contains("\"nope\": executable file not found in $PATH"), "{}", text(&out));
        let id = node.detached("host", &[], &["sleep", "1000"]);
        let out = node.ctr(&["task", "exec", "--exec-id", "a", &id, "nope"]).output().unwrap();
        assert!(text(&out).contains("\"nope\": executable file not found in $PATH"), "{}", text(&out));
        node.remove(&id);
    });
}

/// However soon a process ends, its start is told before its exit, and its exit before its deletion.
#[test]
fn a_hundred_short_execs_leave_no_event_out_of_order() {
    let node = Node::start("newer", "io.containerd.tare.v2");
    let mut events = node.ctr(&["events"]).spawn().unwrap();
    let id = node.detached("execs", &[], &["sleep", "1000"]);
    for number in 0..100 {
        node.ok(&["task", "exec", "--exec-id", &format!("e{number}"), &id, "true"]);
    }
    let (_, shim) = node.shim(&id);
    node.remove(&id);
    gone(&shim);
    events.kill().unwrap();
    let told = String::from_utf8(events.wait_with_output().unwrap().stdout).unwrap();
    let ours: Vec<&str> = told.lines().filter(|line| line.contains(&id) && line.contains("/tasks/")).collect();
    let topic = |line: &&str| line.split_whitespace().find(|word| word.starts_with("/tasks/")).unwrap().to_owned();
    let topics: Vec<String> = ours.iter().map(topic).collect();
    let of = |topic: &str| topics.iter().filter(|there| *there == topic).count();
    assert_eq!((of("/tasks/exec-added"), of("/tasks/exec-started"), of("/tasks/exit")), (100, 100, 101), "{topics:?}");
    assert_eq!(topics[..2], ["/tasks/create", "/tasks/start"]);
    assert_eq!(topics[topics.len() - 2..], ["/tasks/exit", "/tasks/delete"]);
    for three in topics[2..topics.len() - 2].chunks(3) {
        assert_eq!(three, ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]);
    }
    node.end();
}

#[test]
fn a_killed_shim_leaves_nothing_and_the_next_run_works() {
    everywhere(|node| {
        let id = node.detached("crash", &[], &["sleep", "1000"]);
        let (pid, shim) = node.shim(&id);
        kill_process(pid, Signal::KILL).unwrap();
        gone(&shim);
        while node.ok(&["task", "ls"]).contains("RUNNING") {} // the daemon runs `delete`
        let _ = node.ctr(&["task", "rm", &id]).output().unwrap(); // some releases have removed it already
        node.ok(&["container", "rm", &id]);
        let id = node.detached("crash", &[], &["sleep", "1000"]);
        node.remove(&id);
    });
}

/// The options arrive as TOML in a file, the way CRI sends them to runtimes that it does not know.
#[test]
fn another_runtime_is_driven_by_the_same_command_line() {
    let node = Node::start("newer", "io.containerd.tare.v2");
    for tree in ["bookworm", "newer"] {
        let (config, root) = (node.dir.path().join("options.toml"), node.dir.path().join("runc"));
        let binary = programs::peer(tree, "runc").unwrap();
        fs::write(&config, format!("BinaryName = '{}'\nRoot = '{}'\n", binary.display(), root.display())).unwrap();
        let flags = ["--rm", "--runtime-config-path", config.to_str().unwrap()];
        let id = node.id(tree);
        let out = node.run(&flags, &id, &["sh", "-c", "echo through; exit 3"]).output().unwrap();
        assert_eq!(out.status.code(), Some(3), "{}\n{}", text(&out), node.daemon.log());
        assert_eq!(String::from_utf8_lossy(&out.stdout), "through\n");
        assert!(root.join("default").is_dir(), "its state is where it was told");
    }
    node.end();
}

/// What one pod costs for as long as it lives: with one container, after one exec.
#[test]
fn a_shim_stays_within_three_megabytes() {
    let node = Node::start("newer", "io.containerd.tare.v2");
    let id = node.detached("small", &[], &["sleep", "1000"]);
    node.ok(&["task", "exec", "--exec-id", "a", &id, "true"]);
    let (pid, _) = node.shim(&id);
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes <= 3000, "{kilobytes} kB");
    node.remove(&id);
    node.end();
}

/// `ctr run --log-uri`, which is how nerdctl's containers get their logs.
#[test]
fn output_goes_to_files_and_to_programs_whole() {
    everywhere(|node| {
        let (file, program, taken) =
            (node.dir.path().join("deep/log"), node.dir.path().join("take"), node.dir.path().join("taken"));
        let script = "#!/bin/sh\nexec 5>&-\n/bin/cat <&3 > \"$2\"\n/bin/cat <&4 >> \"$2\"\necho $CONTAINER_NAMESPACE $CONTAINER_ID >> \"$2\"\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let id = node.id("logged");
        for uri in
            [format!("file://{}", file.display()), format!("binary://{}?to={}", program.display(), taken.display())]
        {
            let say = ["sh", "-c", "seq 1 5000; echo err >&2; exit 3"];
            let out = node.run(&["--rm", "--log-uri", &uri], &id, &say).output().unwrap();
            assert_eq!(out.status.code(), Some(3), "{}\n{}", text(&out), node.daemon.log());
        }
        let lines: String = (1..=5000).map(|number| format!("{number}\n")).collect();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{lines}err\n"));
        assert_eq!(fs::read_to_string(&taken).unwrap(), format!("{lines}err\ndefault {id}\n"));
    });
}

/// SIGKILL for the daemon, whatever the task does just then.
#[test]
fn a_daemon_that_comes_back_finds_each_task_as_it_is() {
    let mut node = Node::start("newer", "io.containerd.tare.v2");
    let state = |node: &Node, id: &str| {
        let list = node.ok(&["task", "ls"]);
        let line = list.lines().find(|line| line.contains(id)).unwrap().to_owned();
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        (words[1].parse::<i32>().unwrap(), words[2].clone())
    };
    let id = node.detached("kept", &[], &["sleep", "1000"]);
    let mut exec = node.ctr(&["task", "exec", "--exec-id", "long", &id, "sleep", "1000"]).spawn().unwrap();
    while node.ok(&["task", "ps", &id]).lines().count() < 3 {}
    node.daemon.crash_and_restart().unwrap();
    assert_eq!(state(&node, &id).1, "RUNNING");
    assert_eq!(node.ok(&["task", "exec", "--exec-id", "after", &id, "echo", "inside"]), "inside\n");
    node.ok(&["task", "pause", &id]);
    node.daemon.crash_and_restart().unwrap();
    assert_eq!(state(&node, &id).1, "PAUSED");
    node.ok(&["task", "resume", &id]);
    let (_, shim) = node.shim(&id);
    let pid = Pid::from_raw(state(&node, &id).0).unwrap();
    kill_process(Pid::from_raw(node.daemon.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    exec.wait().unwrap();
    node.daemon.crash_and_restart().unwrap();
    // A task that has ended meanwhile is collected by the daemon itself, which hears of its end from the shim.
    gone(&shim);
    assert!(!node.ok(&["task", "ls"]).contains(&id));
    node.ok(&["container", "rm", &id]);
    node.end();
}

/// A daemon that does not take events holds up nothing but them.
#[test]
fn a_daemon_that_is_stopped_hears_of_the_exit_when_it_goes_on() {
    let node = Node::start("newer", "io.containerd.tare.v2");
    let id = node.detached("held", &[], &["sleep", "1000"]);
    let bundle = node.dir.path().join("state/io.containerd.runtime.v2.task/default").join(&id);
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    let mut client = support::connect(Path::new(address.strip_prefix("unix://").unwrap()));
    let daemon = Pid::from_raw(node.daemon.pid().cast_signed()).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    let kill = pb::KillRequest { id: id.clone(), signal: 9, ..Default::default() };
    support::call::<()>(&mut client, "Kill", &kill).unwrap();
    let wait = pb::WaitRequest { id: id.clone(), ..Default::default() };
    assert_eq!(support::call::<pb::WaitResponse>(&mut client, "Wait", &wait).unwrap().exit_status, 137);
    kill_process(daemon, Signal::CONT).unwrap();
    while !node.stopped(&id) {}
    let _ = node.ctr(&["task", "rm", &id]).output().unwrap(); // its own exit code is 137
    node.ok(&["container", "rm", &id]);
    node.end();
}
