//! `tarectl` as a person uses it who knows docker.

use std::process::{Command, Output, Stdio};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, registry::Registry};
use tempfile::TempDir;

/// tared with a registry beside it that holds `busybox:latest`.
struct Node {
    daemon: Daemon,
    registry: Registry,
    _dir: TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-ctl.").tempdir().unwrap();
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
        Node { daemon, registry, _dir: dir }
    }

    fn image(&self) -> String {
        self.registry.reference("busybox")
    }

    fn tarectl(&self, args: &[&str]) -> Command {
        let mut tarectl = self.daemon.tarectl().unwrap();
        tarectl.args(args).stdin(Stdio::null());
        tarectl
    }

    fn output(&self, args: &[&str]) -> Output {
        self.tarectl(args).output().unwrap()
    }

    /// Runs it and returns what it printed; a failure ends the test with all that was said.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "tarectl {args:?}: {}\n{said}\n{}", out.status, self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    /// The output of a container that is removed afterwards.
    fn run(&self, flags: &[&str], command: &[&str]) -> String {
        let image = self.image();
        self.ok(&[&["run", "--rm"], flags, &[&image], command].concat())
    }
}

#[test]
fn the_flags_of_run_mean_what_they_mean_in_docker() {
    let node = Node::start();
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "from the host").unwrap();
    let volume = format!("{}:/data:ro", host.path().display());
    assert_eq!(node.run(&["-e", "A=1", "-e", "B=2"], &["sh", "-c", "echo $A$B"]), "12\n");
    assert_eq!(node.run(&["--hostname", "box"], &["hostname"]), "box\n");
    assert_eq!(node.run(&["-w", "/tmp"], &["pwd"]), "/tmp\n");
    assert_eq!(node.run(&["-u", "nobody"], &["id", "-u"]), "65534\n");
    assert_eq!(node.run(&["-u", "7:8"], &["sh", "-c", "id -u; id -g"]), "7\n8\n");
    assert_eq!(node.run(&["-v", &volume], &["cat", "/data/file"]), "from the host");
    assert_eq!(node.run(&["--entrypoint", "echo"], &["x"]), "x\n");
    assert_eq!(node.run(&["--tmpfs", "/scratch"], &["sh", "-c", "echo hi >/scratch/f; cat /scratch/f"]), "hi\n");
    assert!(node.run(&["--read-only"], &["sh", "-c", "touch /x || echo refused"]).contains("refused"));
    let limit = ["sh", "-c", "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"];
    assert_eq!(node.run(&["-m", "64m"], &limit).trim(), (64 << 20).to_string());
    let capabilities = |flags: &[&str]| {
        let line = node.run(flags, &["sed", "-n", "s/CapEff:.//p", "/proc/self/status"]);
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(capabilities(&[]), 0xa804_25fb);
    assert_eq!(capabilities(&["--cap-drop", "ALL", "--cap-add", "CHOWN"]), 1);
    assert!(capabilities(&["--privileged"]).count_ones() > 30);
}

#[test]
fn an_exit_code_comes_back_and_input_goes_in() {
    let node = Node::start();
    let image = node.image();
    assert_eq!(node.output(&["run", "--rm", &image, "sh", "-c", "exit 42"]).status.code(), Some(42));
    let mut cat = node
        .tarectl(&["run", "--rm", "-i", &image, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut cat.stdin.take().unwrap(), b"through and through").unwrap();
    let out = cat.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"through and through"[..]));
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "", "--rm leaves nothing");
}

#[test]
fn a_detached_container_is_listed_entered_read_killed_and_removed() {
    let node = Node::start();
    let image = node.image();
    assert_eq!(node.ok(&["run", "-d", "--name", "web", &image, "sh", "-c", "echo ready; sleep 1000"]), "web\n");
    assert_eq!(node.ok(&["ps", "-q"]), "web\n");
    assert!(node.ok(&["ps"]).contains("running"));
    while node.ok(&["logs", "web"]) != "ready\n" {}
    assert_eq!(node.ok(&["exec", "web", "echo", "inside"]), "inside\n");
    assert_eq!(node.output(&["exec", "web", "sh", "-c", "exit 3"]).status.code(), Some(3));
    assert!(node.ok(&["stats", "-o", "json"]).contains("\"web\""));
    let shown: serde_json::Value = serde_json::from_str(&node.ok(&["inspect", "web"])).unwrap();
    assert_eq!((shown["name"].as_str(), shown["status"].as_str()), (Some("web"), Some("running")));
    let refused = node.output(&["rm", "web"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is running"), "{refused:?}");
    node.ok(&["kill", "web"]);
    while !node.ok(&["ps", "-a"]).contains("exited (137)") {}
    node.ok(&["rm", "web"]);
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn images_are_pulled_named_and_removed() {
    let node = Node::start();
    let image = node.image();
    let full = format!("{image}:latest");
    assert_eq!(node.ok(&["pull", "-q", &image]), format!("{full}\n"));
    node.ok(&["tag", &image, "localhost/mine:1"]);
    let mut names: Vec<String> = node.ok(&["images", "-q"]).lines().map(str::to_owned).collect();
    names.sort();
    let mut expected = vec![full, "localhost/mine:1".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    node.ok(&["rmi", &image]);
    assert_eq!(
        node.ok(&["run", "--rm", "localhost/mine:1", "echo", "kept"]),
        "kept\n",
        "the other name keeps the layers"
    );
    node.ok(&["rmi", "localhost/mine:1"]);
    assert_eq!(node.ok(&["images", "-q"]), "");
}

#[test]
fn what_is_not_there_is_told_in_a_sentence() {
    let node = Node::start();
    let image = node.image();
    let said = |args: &[&str]| {
        let out = node.output(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(said(&["run", "--rm", &image, "nope"]).contains("\"nope\": executable file not found in $PATH"));
    assert!(said(&["run", "--rm", &node.registry.reference("none"), "x"]).contains("not found"));
    assert!(said(&["run", "--rm", "-u", "4294967296", &image, "x"]).contains("is not a user or group id"));
    assert!(said(&["kill", "none"]).contains("none"));
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "", "a run that failed leaves nothing");
    let nobody = node.daemon.tarectl().unwrap().args(["--address", "/nonexistent", "version"]).output().unwrap();
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("connecting to tared at /nonexistent"));
}
