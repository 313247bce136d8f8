//! Create, start, kill, delete and what lies between.

use std::os::unix::process::CommandExt as _;

use serde_json::{Value, json};

use crate::bundle::{Bundle, answer};

/// Where nothing can start, a command that tried would never come back.
#[test]
fn a_cgroup_that_is_in_use_or_frozen_is_refused() {
    let first = Bundle::new().set("/process/args", json!(["sleep", "1000"]));
    let path = format!("/{}", first.id);
    let first = first.set("/linux/cgroupsPath", json!(path));
    first.done(&["run", "--detach", &first.id]);
    let second = Bundle::new().set("/linux/cgroupsPath", json!(path));
    assert!(second.fails(&["run", &second.id]).contains("container's cgroup is not empty"));
    first.done(&["pause", &first.id]);
    assert!(second.fails(&["run", &second.id]).contains("container's cgroup unexpectedly frozen"));
    first.done(&["delete", "--force", &first.id]);
}

#[test]
fn run_gives_the_programs_output_and_exit_code_and_leaves_nothing() {
    let bundle = Bundle::new().script("echo out; echo err >&2; exit 7");
    let ended = bundle.run();
    assert_eq!((ended.code, &*ended.out, &*ended.err), (Some(7), "out\n", "err\n"));
    bundle.assert_gone();
}

#[test]
fn a_program_that_a_signal_ends_gives_128_and_its_number() {
    let bundle = Bundle::new().script("sh -c 'kill -KILL $$'; exit $?");
    assert_eq!(bundle.run().code, Some(137));
    let bundle = Bundle::new().script("echo ready; while :; do sleep 1; done");
    bundle.done(&["run", "--detach", &bundle.id]);
    let pid = bundle.pid();
    bundle.done(&["kill", &bundle.id, "KILL"]);
    Bundle::wait_for_end_of(pid);
    assert_eq!(bundle.status(), "stopped");
}

#[test]
fn a_container_is_created_started_and_stopped_and_says_so() {
    let bundle =
        Bundle::new().script("echo started; exec sleep 1000").set("/annotations", json!({"some.key": "value"}));
    bundle.done(&["create", "--pid-file", "pid", &bundle.id]);
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"], json!({"some.key": "value"}));
    assert_eq!(state["id"], *bundle.id);
    assert_eq!(std::fs::read_to_string(bundle.path("pid")).unwrap(), state["pid"].to_string());
    assert_eq!(bundle.output(), "", "the program runs before it was started");
    assert!(bundle.fails(&["create", &bundle.id]).contains("container with given ID already exists"));
    bundle.done(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.fails(&["start", &bundle.id]).contains("cannot start an already running container"));
    let refused = format!("cannot delete container {} that is not stopped: running", bundle.id);
    assert!(bundle.fails(&["delete", &bundle.id]).contains(&refused));
    let pid = bundle.pid();
    bundle.done(&["kill", &bundle.id, "9"]);
    Bundle::wait_for_end_of(pid);
    assert_eq!((bundle.status(), bundle.pid()), ("stopped".into(), 0));
    assert!(bundle.fails(&["kill", &bundle.id]).contains("container not running"));
    assert!(bundle.fails(&["start", &bundle.id]).contains("cannot start a container that has stopped"));
    assert!(bundle.fails(&["exec", &bundle.id, "true"]).contains("cannot exec in a stopped container"));
    assert!(bundle.output().starts_with("started\n"));
    bundle.done(&["delete", &bundle.id]);
    assert!(bundle.fails(&["state", &bundle.id]).contains("container does not exist"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("container does not exist"));
    bundle.done(&["delete", "--force", &bundle.id]);
    bundle.assert_gone();
}

#[test]
fn state_has_runcs_keys_in_runcs_order() {
    let bundle = Bundle::new();
    bundle.done(&["create", &bundle.id]);
    let text = bundle.tare(&["state", &bundle.id]).out;
    let keys: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  \"")?.split('"').next()).collect();
    assert_eq!(keys, ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"]);
    assert!(text.ends_with('}'), "a newline ends {text}");
}

#[test]
fn list_shows_what_there_is() {
    let bundle = Bundle::new();
    std::fs::create_dir(bundle.state_root()).unwrap();
    assert_eq!(bundle.tare(&["list", "--format", "json"]).out, "null\n");
    bundle.done(&["create", &bundle.id]);
    assert_eq!(bundle.tare(&["list", "-q"]).out, format!("{}\n", bundle.id));
    let json: Value = serde_json::from_str(&bundle.tare(&["list", "--format=json"]).out).unwrap();
    assert_eq!((&json[0]["id"], &json[0]["owner"]), (&json!(bundle.id), &json!("root")));
    let table = bundle.tare(&["list"]).out;
    let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let bundle = Bundle::new().script("exec sleep 1000");
    bundle.done(&["run", "-d", &bundle.id]);
    assert!(bundle.fails(&["resume", &bundle.id]).contains("container not paused"));
    bundle.done(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    let refused = bundle.fails(&["exec", &bundle.id, "true"]);
    assert!(refused.contains("cannot exec in a paused container (use --ignore-paused to override)"), "{refused}");
    bundle.done(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    bundle.done(&["pause", &bundle.id]);
    bundle.done(&["delete", "--force", &bundle.id]); // frozen processes die too
    bundle.assert_gone();
}

#[test]
fn exec_runs_beside_the_first_process_and_gives_its_exit_code() {
    let bundle = Bundle::new().script("exec sleep 1000").set("/hostname", json!("exec-here"));
    bundle.done(&["run", "-d", &bundle.id]);
    let id = &*bundle.id;
    let ended = bundle.tare(&[
        "exec",
        "--cwd",
        "/tmp",
        "-e",
        "A=b",
        "--user",
        "5:6",
        "-g",
        "7",
        id,
        "sh",
        "-c",
        "echo $A $(pwd) $(id); cat /proc/sys/kernel/hostname; exit 9",
    ]);
    assert_eq!((ended.code, &*ended.out), (Some(9), "b /tmp uid=5 gid=6 groups=7\nexec-here\n"), "{ended:?}");
    assert_eq!(bundle.tare(&["exec", id, "sh", "-c", "kill -TERM $$; sleep 1000"]).code, Some(143));
    let failed = bundle.tare(&["exec", id, "nope"]);
    assert_eq!(failed.code, Some(255));
    assert!(failed.err.contains("exec: \\\"nope\\\": executable file not found in $PATH"), "{failed:?}");
    bundle.done(&["exec", "-d", "--pid-file", "pid", id, "sleep", "1000"]);
    let pid = std::fs::read_to_string(bundle.path("pid")).unwrap();
    let pids: Vec<i32> = serde_json::from_str(&bundle.tare(&["ps", "--format", "json", id]).out).unwrap();
    assert!(pids.contains(&pid.parse().unwrap()) && pids.contains(&bundle.pid()), "{pids:?}");
    let table = bundle.tare(&["ps", id]).out;
    assert!(table.lines().next().unwrap().contains("PID"), "{table}");
    assert_eq!(table.lines().count(), pids.len() + 1, "{table}");
    bundle.done(&["delete", "-f", id]);
    bundle.assert_gone();
}

#[test]
fn exec_takes_a_process_from_a_file() {
    let bundle = Bundle::new().script("exec sleep 1000");
    bundle.done(&["run", "-d", &bundle.id]);
    let process =
        json!({"args": ["/bin/sh", "-c", "echo $X; pwd"], "env": ["X=y"], "cwd": "/bin", "user": {"uid": 0, "gid": 0}});
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    assert_eq!(bundle.tare(&["exec", "--process", "process.json", &bundle.id]).out, "y\n/bin\n");
}

#[test]
fn signals_to_a_foreground_run_go_to_the_program() {
    let bundle = Bundle::new().script("trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.05; done");
    let mut child = bundle.command(&["run", &bundle.id]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "got it");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    bundle.assert_gone();
}

#[test]
fn hooks_run_in_order_and_read_the_state() {
    let hook = |name: &str, order: &str| {
        let script = format!("{{ echo {name}; cat; echo; }} >> {order}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let mut bundle = Bundle::new().script("exec sleep 1000").set("/root/readonly", json!(false));
    let order = bundle.path("order").to_str().unwrap().to_owned();
    let hooks: serde_json::Map<String, Value> =
        ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
            .iter()
            .map(|name| ((*name).to_owned(), hook(name, &order)))
            .chain([("startContainer".to_owned(), hook("startContainer", "/tmp/order"))])
            .collect();
    bundle.config["hooks"] = hooks.into();
    let told = |bundle: &Bundle, file: &str| -> Vec<(String, String)> {
        let text = std::fs::read_to_string(bundle.path(file)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let pairs = lines.chunks(2).map(|pair| (pair[0], serde_json::from_str::<Value>(pair[1]).unwrap()));
        pairs.map(|(name, state)| (name.to_owned(), state["status"].as_str().unwrap().to_owned())).collect()
    };
    let pairs = |expected: &[(&str, &str)]| -> Vec<(String, String)> {
        expected.iter().map(|(name, status)| ((*name).to_owned(), (*status).to_owned())).collect()
    };
    bundle.done(&["create", &bundle.id]);
    let before = [("prestart", "creating"), ("createRuntime", "creating"), ("createContainer", "creating")];
    assert_eq!(told(&bundle, "order"), pairs(&before));
    bundle.done(&["start", &bundle.id]);
    assert_eq!(told(&bundle, "rootfs/tmp/order"), pairs(&[("startContainer", "created")]));
    bundle.done(&["delete", "--force", &bundle.id]);
    let all = [&before[..], &[("poststart", "running"), ("poststop", "stopped")]].concat();
    assert_eq!(told(&bundle, "order"), pairs(&all));
}

#[test]
fn a_hook_that_fails_stops_create_and_leaves_nothing() {
    for when in ["prestart", "createRuntime", "createContainer"] {
        let hooks = json!({when: [{"path": "/bin/sh", "args": ["sh", "-c", "echo so it is >&2; exit 4"]}]});
        let bundle = Bundle::new().set("/hooks", hooks);
        let said = bundle.fails(&["create", &bundle.id]);
        assert!(said.contains("so it is") && said.contains('4'), "{said}");
        bundle.assert_gone();
    }
}

#[test]
fn descriptors_are_passed_on_if_asked_for_and_not_otherwise() {
    let bundle = Bundle::new().script("ls /proc/self/fd; cat <&3");
    std::fs::write(bundle.path("passed"), "hello").unwrap();
    let run = |flag: &str| {
        let script = format!("exec 3<passed 4<passed; exec \"$0\" --root state run {flag} {}", bundle.id);
        let ls = bundle.command(&[]); // writes config.json
        drop(ls);
        answer(
            std::process::Command::new("/bin/sh")
                .arg0("sh")
                .args(["-c", &script, env!("CARGO_BIN_EXE_tare")])
                .current_dir(bundle.path("")),
        )
    };
    // 3 (or 4) is the folder that `ls` reads.
    assert_eq!(run("--preserve-fds 1").out, "0\n1\n2\n3\n4\nhello");
    let closed = run("");
    assert_eq!(closed.out, "0\n1\n2\n3\n", "{closed:?}");
    assert!(run("--preserve-fds 5").err.contains("preserving file descriptor"));
}

#[test]
fn called_as_runc_it_answers_as_runc() {
    let bundle = Bundle::new();
    let runc = bundle.path("runc");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tare"), &runc).unwrap();
    let said = answer(std::process::Command::new(&runc).arg("--version")).out;
    assert!(said.starts_with("runc version ") && said.contains("\nspec: "), "{said}");
    let said = bundle.tare(&["features"]).out;
    let features: Value = serde_json::from_str(&said).unwrap();
    assert!(features["linux"]["seccomp"]["enabled"].as_bool().unwrap(), "{said}");
    assert_eq!(bundle.tare(&["nonsense"]).code, Some(3));
}

#[test]
fn an_error_is_one_line_in_the_log_and_bare_on_standard_error() {
    let bundle = Bundle::new();
    let answer = answer(bundle.command(&["--log", "log", "--log-format", "json", "state", "nobody"]).env_clear());
    let line: Value = serde_json::from_str(&std::fs::read_to_string(bundle.path("log")).unwrap()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
    assert_eq!((answer.code, answer.err.trim()), (Some(1), "container does not exist"));
}
