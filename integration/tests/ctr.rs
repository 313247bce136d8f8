//! Debian's own `ctr`, unchanged, drives containerd first and tared second: what the peer answers is what ours must.

use std::process::{Command, Output, Stdio};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::{image, registry::Registry};
use tempfile::TempDir;

/// A daemon with a registry that holds `busybox:latest`, both gone when dropped.
struct Node {
    daemon: Daemon,
    registry: Registry,
    ctr: &'static str,
    dir: TempDir,
}

impl Node {
    fn start(kind: Kind, ctr: &'static str) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-ctr.").tempdir().unwrap();
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let daemon = Daemon::start(kind, dir.path()).unwrap();
        Node { daemon, registry, ctr, dir }
    }

    fn image(&self) -> String {
        self.registry.reference("busybox:latest")
    }

    /// `ctr` with arguments split at spaces.
    fn ctr(&self, words: &str) -> Command {
        let mut ctr = self.daemon.ctr(self.ctr).unwrap();
        ctr.args(words.split_whitespace()).stdin(Stdio::null());
        ctr
    }

    /// Runs `ctr` and returns its standard output; a failure ends the test with all that was said.
    fn ok(&self, words: &str) -> String {
        let out = self.ctr(words).output().unwrap();
        assert!(out.status.success(), "ctr {words}: {}\n{}\ndaemon:\n{}", out.status, text(&out), self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    /// Waits until the killed task has stopped, removes it, and finds its exit code in what `ctr` says.
    fn removes_killed_task(&self, task: &str) {
        while !self.ok("task ls").contains("STOPPED") {}
        let removed = self.ctr(&format!("task rm {task}")).output().unwrap();
        // `ctr` 1.6 ends with the task's code, later releases say it in a warning.
        assert!(removed.status.code() == Some(137) || text(&removed).contains("exit code 137"), "{}", text(&removed));
    }

    fn pulled(self) -> Node {
        self.ok(&format!("image pull --plain-http {}", self.image()));
        self
    }

    /// Stops everything and checks that nothing is left behind.
    fn end(self) {
        let private = self.dir.path().to_string_lossy().into_owned();
        drop(self.daemon);
        drop(self.registry);
        Inventory::expect_none(&[&private]);
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The same promise, asked of containerd first and of tared with each release's client.
fn everywhere(promise: impl Fn(Node)) {
    for (kind, ctr) in [(Kind::Containerd("newer"), "newer"), (Kind::Tared, "newer"), (Kind::Tared, "bookworm")] {
        eprintln!("{kind:?} driven by ctr of {ctr}");
        promise(Node::start(kind, ctr));
    }
}

#[test]
fn the_server_tells_a_version_that_clients_can_read() {
    everywhere(|node| {
        let said = node.ok("version");
        let server = said.split("Server:").nth(1).expect("ctr prints the server's part");
        assert!(server.contains("Version:") && server.contains("UUID:"), "{said}");
        node.end();
    });
}

#[test]
fn a_pulled_image_is_listed_and_its_content_and_snapshots_too_until_it_is_removed() {
    everywhere(|node| {
        let node = node.pulled();
        let name = node.image();
        assert_eq!(node.ok("image ls -q").trim(), name);
        assert_eq!(node.ok("content ls -q").lines().count(), 3, "manifest, config and one layer");
        assert!(node.ok("snapshot ls").contains("Committed"));
        node.ok(&format!("image rm --sync {name}"));
        assert_eq!(node.ok("image ls -q"), "");
        assert_eq!(node.ok("content ls -q"), "");
        assert!(!node.ok("snapshot ls").contains("Committed"));
        node.end();
    });
}

#[test]
fn run_in_the_foreground_shows_the_output_and_returns_the_exit_code() {
    everywhere(|node| {
        let node = node.pulled();
        let out = node
            .ctr("run --rm --env GREETING=hello")
            .args([&node.image(), "one", "sh", "-c", "echo $GREETING; echo oops >&2; exit 3"])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(3), "{}\n{}", text(&out), node.daemon.log());
        assert_eq!(String::from_utf8_lossy(&out.stdout), "hello\n");
        assert_eq!(String::from_utf8_lossy(&out.stderr), "oops\n");
        assert_eq!(node.ok("container ls -q"), "");
        assert_eq!(node.ok("task ls -q"), "");
        node.end();
    });
}

#[test]
fn a_detached_container_is_seen_entered_killed_and_removed() {
    everywhere(|node| {
        let node = node.pulled();
        node.ok(&format!("run -d {} two sleep 1000", node.image()));
        assert!(node.ok("task ls").contains("RUNNING"));
        assert!(node.ok("container info two").contains("\"two\""));
        assert_eq!(node.ok("task exec --exec-id e two echo inside"), "inside\n");
        let exec = node.ctr("task exec --exec-id f two false").status().unwrap();
        assert_eq!(exec.code(), Some(1));
        let ps = node.ok("task ps two");
        assert_eq!(ps.lines().count(), 2, "{ps}");
        node.ok("task kill -s KILL two");
        node.removes_killed_task("two");
        node.ok("container rm two");
        assert_eq!(node.ok("container ls -q"), "");
        node.end();
    });
}

#[test]
fn a_container_does_not_notice_that_its_daemon_was_killed() {
    everywhere(|mut node| {
        node.ok(&format!("image pull --plain-http {}", node.image()));
        node.ok(&format!("run -d {} three sleep 1000", node.image()));
        let before = node.ok("task ls");
        node.daemon.crash_and_restart().unwrap();
        assert_eq!(node.ok("task ls"), before, "the same container with the same pid still runs");
        node.ok("task kill -s KILL three");
        node.removes_killed_task("three");
        node.ok("container rm three");
        node.end();
    });
}

#[test]
fn a_missing_program_is_told_by_name_and_leaves_no_task() {
    everywhere(|node| {
        let node = node.pulled();
        let out = node.ctr(&format!("run --rm {} four nope", node.image())).output().unwrap();
        assert!(!out.status.success());
        assert!(text(&out).contains("\"nope\": executable file not found in $PATH"), "{}", text(&out));
        assert_eq!(node.ok("task ls -q"), "");
        node.end();
    });
}
