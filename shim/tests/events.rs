//! What is told of tasks, beside what containerd's own shim tells: the same commands, the same runtime, the same events in
//! the same order.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use tare_integration::programs;

use support::node::{Node, text};

const THEIRS: &str = "io.containerd.runc.v2";

/// `ctr events`, line by line as they come.
struct Listener {
    ctr: Child,
    lines: Receiver<String>,
    /// For each container what was told of it.
    heard: BTreeMap<String, Vec<String>>,
}

impl Listener {
    fn start(node: &Node) -> Listener {
        let mut ctr = node.ctr(&["events"]).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(ctr.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // It does not say when it listens: something is changed until it has heard of that.
        let hears = |count: u32| {
            node.ok(&["namespaces", "label", "default", &format!("probe={count}")]);
            lines.recv_timeout(Duration::from_millis(100)).is_ok()
        };
        assert!((0..600).any(hears), "ctr events hears nothing");
        Listener { ctr, lines, heard: BTreeMap::new() }
    }

    /// Listens until this was told of a container.
    fn until(&mut self, container: &str, event: &str) {
        while !self.heard.get(container).is_some_and(|heard| heard.iter().any(|line| line == event)) {
            let line = self.lines.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("{container}: no {event} in {:?}", self.heard));
            let Some((topic, event)) = line.find("/tasks/").and_then(|at| line[at..].split_once(' ')) else { continue };
            let event: Value = serde_json::from_str(event).unwrap();
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let which = if event["exec_id"].is_null() { word("id") } else { word("exec_id") };
            let which = if which == word("container_id") { "init".to_owned() } else { which };
            let status = event["exit_status"].as_u64().unwrap_or(0);
            let told = format!("{} {which} {status}", &topic["/tasks/".len()..]);
            self.heard.entry(word("container_id")).or_default().push(told);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.ctr.kill(); // it may have ended with the daemon
        let _ = self.ctr.wait();
    }
}

/// Both shims drive the same runc. `ctr` has flags for containerd's own shim; others get a file.
fn options(node: &Node, runtime: &str) -> Vec<String> {
    let (runc, root) = (programs::peer("newer", "runc").unwrap(), node.dir.path().join("runc"));
    let (runc, root) = (runc.display().to_string(), root.display().to_string());
    if runtime == THEIRS {
        return vec!["--runc-binary".into(), runc, "--runc-root".into(), root];
    }
    let file = node.dir.path().join("options.toml");
    fs::write(&file, format!("BinaryName = '{runc}'\nRoot = '{root}'\n")).unwrap();
    vec!["--runtime-config-path".into(), file.display().to_string()]
}

/// What is told of a few commands under one shim; without the mark that makes names unique.
fn told_by(runtime: &str) -> BTreeMap<String, Vec<String>> {
    let node = Node::start("newer", runtime);
    let flags = options(&node, runtime);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let attached = |id: &str, code: i32, command: &[&str]| {
        let out = node.run(&[&["--rm"], &flags[..]].concat(), id, command).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{id}: {}", text(&out));
    };
    let mut listener = Listener::start(&node);
    let (quick, failing, missing) = (node.id("quick"), node.id("failing"), node.id("missing"));
    attached(&quick, 0, &["true"]);
    attached(&failing, 3, &["sh", "-c", "exit 3"]);
    attached(&missing, 1, &["/nonexistent"]);
    let id = node.detached("life", &flags, &["sleep", "1000"]);
    node.ok(&["task", "exec", "--exec-id", "short", &id, "true"]);
    assert!(!node.ctr(&["task", "exec", "--exec-id", "missing", &id, "/nonexistent"]).status().unwrap().success());
    node.ok(&["task", "pause", &id]);
    assert!(!node.ctr(&["task", "exec", "--exec-id", "refused", &id, "true"]).status().unwrap().success());
    node.ok(&["task", "resume", &id]);
    let exec = node.ctr(&["task", "exec", "--exec-id", "long", &id, "sleep", "1000"]).spawn().unwrap();
    listener.until(&id, "exec-started long 0");
    node.ok(&["task", "kill", "-s", "KILL", &id]);
    listener.until(&id, "exit init 137");
    let out = exec.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(137), "{}", text(&out));
    node.ctr(&["task", "rm", &id]).output().unwrap(); // it ends with the task's own code
    node.ok(&["container", "rm", &id]);
    for (container, code) in [(&quick, 0), (&failing, 3), (&id, 137)] {
        listener.until(container, &format!("exit init {code}"));
        // Theirs may be told to end, and does, before it has sent its last event.
        if runtime != THEIRS {
            listener.until(container, &format!("delete  {code}"));
        }
    }
    let heard = std::mem::take(&mut listener.heard);
    drop(listener);
    let mark = format!("-{}", node.mark);
    node.end();
    let without_deletion = |told: Vec<String>| told.into_iter().filter(|line| !line.starts_with("delete")).collect();
    heard.into_iter().map(|(container, told)| (container.replace(&mark, ""), without_deletion(told))).collect()
}

#[test]
fn the_same_events_are_told_in_the_same_order_as_by_containerds_own_shim() {
    let theirs = told_by(THEIRS);
    assert_eq!(theirs["quick"].len(), 3, "created, started, ended: {theirs:?}");
    assert_eq!(told_by("io.containerd.tare.v2"), theirs);
}
