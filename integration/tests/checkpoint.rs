//! Checkpoints through the daemons: Debian's `ctr` writes one as an image and starts a container from it, and has a task
//! dumped into a folder. containerd with its own shim and runc is asked first, then containerd with ours, then tared.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::podman::Podman;
use tare_integration::{image, programs, registry::Registry};

const RUNC: &str = "io.containerd.runc.v2";
const TARE: &str = "io.containerd.tare.v2";
/// Only its memory knows how far it has come, and a file how often it has begun.
const COUNTER: &str = "echo begun >> /begun; n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.02; done";

struct Node {
    daemon: Daemon,
    registry: Registry,
    dir: tempfile::TempDir,
    runtime: &'static str,
}

impl Node {
    fn start(kind: Kind, runtime: &'static str) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-checkpoint.").tempdir().unwrap();
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        // CRIU is not to change how packets are filtered on this machine.
        std::fs::write(dir.path().join("criu.conf"), "network-lock skip\n").unwrap();
        let daemon = Daemon::start(kind, dir.path()).unwrap();
        let node = Node { daemon, registry, dir, runtime };
        node.ok(&["image", "pull", "--plain-http", &node.image()]);
        node
    }

    fn image(&self) -> String {
        self.registry.reference("busybox:latest")
    }

    fn ctr(&self, words: &[&str]) -> Output {
        let mut ctr: Command = self.daemon.ctr("newer").unwrap();
        ctr.args(words).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let out = self.ctr(words);
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{} ctr {words:?}: {said}\ndaemon:\n{}", self.runtime, self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    fn reads(&self, container: &str, file: &str) -> String {
        let out = self.ctr(&["task", "exec", "--exec-id", "look", container, "cat", file]);
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// How far the counter in a container is, once it has begun.
    fn count(&self, container: &str) -> u64 {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(count) = self.reads(container, "/count").parse() {
                return count;
            }
            assert!(Instant::now() < limit, "{container}: its program does not run");
        }
    }

    fn status(&self, container: &str) -> String {
        let list = self.ok(&["task", "ls"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(container));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or("none").to_owned()
    }

    fn remove(&self, container: &str) {
        if self.status(container) == "RUNNING" {
            self.ok(&["task", "kill", "-s", "KILL", container]);
        }
        while self.status(container) == "RUNNING" {}
        self.ctr(&["task", "rm", container]); // ends with the task's code, or says it
        self.ok(&["container", "rm", container]);
    }

    fn end(self) {
        let private = self.dir.path().to_string_lossy().into_owned();
        drop(self.daemon);
        drop(self.registry);
        Inventory::expect_none(&[&private]);
    }
}

fn promise(kind: Kind, runtime: &'static str) {
    let node = Node::start(kind, runtime);
    let annotation = format!("org.criu.config={}", node.dir.path().join("criu.conf").display());
    let image = node.image();
    let run = ["run", "-d", "--runtime", runtime, "--annotation", &annotation, &image, "one", "sh", "-c", COUNTER];
    node.ok(&run);
    let before = node.count("one");
    node.ok(&["container", "checkpoint", "--rw", "--image", "--task", "one", "test/one:dumped"]);
    assert_eq!(node.status("one"), "RUNNING", "it goes on");
    node.remove("one");

    node.ok(&["container", "restore", "--rw", "--live", "two", "test/one:dumped"]);
    assert_eq!(node.status("two"), "RUNNING");
    let after = node.count("two");
    assert!(after >= before, "{after} comes behind {before}");
    assert_eq!(node.reads("two", "/begun"), "begun", "once");

    let folder = node.dir.path().join("images");
    node.ok(&["task", "checkpoint", "--exit", "--image-path", text(&folder), "two"]);
    assert!(folder.join("inventory.img").exists());
    while node.status("two") == "RUNNING" {}
    node.remove("two");
    node.end();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn containerd_keeps_it_with_its_own_shim() {
    promise(Kind::Containerd("newer"), RUNC);
}

#[test]
fn containerd_keeps_it_with_ours() {
    promise(Kind::Containerd("newer"), TARE);
}

#[test]
fn tared_keeps_it() {
    promise(Kind::Tared, TARE);
}

/// conmon calls the runtime then, with a folder of podman's own for the images.
#[test]
fn podman_restores_in_place_and_from_an_archive() {
    let dir = tempfile::Builder::new().prefix("tare-checkpoint.").tempdir().unwrap();
    let podman = Podman::new(dir.path()).unwrap();
    podman.import_busybox().unwrap();
    std::fs::write(dir.path().join("criu.conf"), "network-lock skip\n").unwrap();
    let criu = programs::peer("criu", "criu").unwrap();
    let path = format!("{}:{}", text(criu.parent().unwrap()), std::env::var("PATH").unwrap());
    let ok = |words: &[&str]| {
        let out = podman.command(words.iter().copied()).unwrap().env("PATH", &path).output().unwrap();
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "podman {words:?}: {said}{wrong}");
        said.trim().to_owned()
    };
    let reads = |container: &str, file: &str| ok(&["exec", container, "cat", file]);
    let limit = Instant::now() + Duration::from_secs(60);
    // Between emptying its file and writing it the counter may be stopped for a moment.
    let count = |container: &str| -> u64 {
        loop {
            if let Ok(count) = reads(container, "/count").parse() {
                return count;
            }
            assert!(Instant::now() < limit, "{container}: its program does not run");
        }
    };
    let parent = format!("--cgroup-parent=/{}", podman.parent);
    let annotation = format!("--annotation=org.criu.config={}", text(&dir.path().join("criu.conf")));
    let archive = dir.path().join("one.tar");
    // A root that is written to and nothing else: what lies in the container's folder is in the archive.
    ok(&["run", "-d", "--name", "one", &parent, &annotation, "tare.test/busybox", "sh", "-c", COUNTER]);
    while podman.command(["exec", "one", "cat", "/count"]).unwrap().output().unwrap().stdout.is_empty() {
        assert!(Instant::now() < limit, "its program does not run");
    }
    let before = count("one");
    ok(&["container", "checkpoint", "one"]);
    ok(&["container", "restore", "one"]);
    assert!(count("one") >= before);
    ok(&["container", "checkpoint", "--export", text(&archive), "one"]);
    ok(&["rm", "-f", "one"]);
    ok(&["container", "restore", "--import", text(&archive), "--name", "two"]);
    assert!(count("two") >= before);
    assert_eq!(reads("two", "/begun"), "begun", "once");
}
