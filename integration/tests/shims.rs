//! What tared makes of shims that die, of exits that it did not see, and of shims that are not ours.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::programs;
use tempfile::TempDir;

/// A daemon, and a root folder with busybox in it.
struct Node {
    daemon: Daemon,
    dir: TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-shims.").tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for folder in ["bin", "dev", "proc", "sys", "etc"] {
            fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
        for name in ["echo", "sh", "sleep"] {
            symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        Node { daemon: Daemon::start(Kind::Tared, dir.path()).unwrap(), dir }
    }

    /// Debian's `ctr` with arguments split at spaces.
    fn ctr(&self, words: &str) -> Command {
        let mut ctr = self.daemon.ctr("newer").unwrap();
        ctr.args(words.split_whitespace()).stdin(Stdio::null());
        ctr
    }

    fn ok(&self, words: &str) -> String {
        let out = self.ctr(words).output().unwrap();
        assert!(out.status.success(), "ctr {words}: {}\n{}\ndaemon:\n{}", out.status, text(&out), self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    /// `ctr run` with our shim on our root folder.
    fn run(&self, words: &str) -> Command {
        let rootfs = self.dir.path().join("rootfs");
        self.ctr(
            &format!("run --runtime io.containerd.tare.v2 --rootfs {words}")
                .replace("ROOTFS", rootfs.to_str().unwrap()),
        )
    }

    fn detached(&self, name: &str) {
        let out = self.run(&format!("-d ROOTFS {name} /bin/sleep 1000")).output().unwrap();
        assert!(out.status.success(), "{}\n{}", text(&out), self.daemon.log());
    }

    /// The shim that serves `name`, by its command line.
    fn shim(&self, name: &str) -> i32 {
        let (address, id) = (self.daemon.socket().display().to_string(), format!("\0-id\0{name}\0"));
        let is_it = |line: &str| line.contains("containerd-shim") && line.contains(&address) && line.contains(&id);
        wait_for(|| processes().find(|(_, line)| is_it(line)).map(|(pid, _)| pid))
    }

    /// The process id that `task ls` shows for `name`.
    fn pid(&self, name: &str) -> i32 {
        let list = self.ok("task ls");
        let row = list.lines().find(|line| line.split_whitespace().next() == Some(name)).expect(&list);
        row.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn stop_daemon_and<T>(&mut self, meanwhile: impl FnOnce(&Node) -> T) {
        signal(self.daemon.pid().cast_signed(), "STOP");
        meanwhile(self);
        self.daemon.crash_and_restart().unwrap();
    }

    /// Stops everything and checks that nothing is left: no process, mount, cgroup, bundle or runtime state.
    fn end(self) {
        let private = self.dir.path().to_string_lossy().into_owned();
        for folder in ["state", "root"] {
            let bundles = self.dir.path().join(folder).join("io.containerd.runtime.v2.task/default");
            let left: Vec<_> =
                fs::read_dir(bundles).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        drop(self.daemon);
        Inventory::expect_none(&[&private]);
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn processes() -> impl Iterator<Item = (i32, String)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned()))
    })
}

/// Asks again until there is an answer.
fn wait_for<T>(ask: impl Fn() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < limit, "nothing came within 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: i32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

/// `ctr events` into a file, ended when dropped.
struct Events {
    reader: Child,
    path: PathBuf,
}

impl Events {
    fn follow(node: &Node, dir: &Path) -> Events {
        let path = dir.join("events");
        let file = fs::File::create(&path).unwrap();
        let events = Events { reader: node.ctr("events").stdout(file).spawn().unwrap(), path };
        // Live once something of ours comes out of it.
        wait_for(|| {
            node.ok("namespaces create probe");
            node.ok("namespaces remove probe");
            fs::read_to_string(&events.path).unwrap().contains("/namespaces/").then_some(())
        });
        events
    }

    fn of(&self, topic: &str) -> Option<String> {
        let text = fs::read_to_string(&self.path).unwrap();
        text.lines().find(|line| line.contains(topic)).map(str::to_owned)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.reader.kill();
        let _ = self.reader.wait();
    }
}

#[test]
fn a_task_whose_shim_is_killed_ends_for_everybody_and_leaves_nothing() {
    let node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let events = Events::follow(&node, dir.path());
    let waiting = node.run("ROOTFS one /bin/sleep 1000").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(|| node.ok("task ls").contains("RUNNING").then_some(()));
    signal(node.shim("one"), "KILL");
    let waited = waiting.wait_with_output().unwrap();
    assert!(text(&waited).contains("task one: not found"), "who waits hears of the end: {}", text(&waited));
    for topic in ["/tasks/exit", "/tasks/delete"] {
        let event = wait_for(|| events.of(topic));
        assert!(event.contains("\"container_id\":\"one\"") && event.contains("\"exit_status\":137"), "{event}");
    }
    assert_eq!(node.ok("task ls -q"), "");
    node.ok("container rm one");
    drop(events);
    node.end();
}

#[test]
fn a_shim_that_died_while_the_daemon_was_away_is_cleaned_up_at_its_start() {
    let mut node = Node::start();
    node.detached("two");
    node.stop_daemon_and(|node| signal(node.shim("two"), "KILL"));
    assert_eq!(node.ok("task ls -q"), "");
    node.ok("container rm two");
    node.end();
}

#[test]
fn an_exit_that_the_daemon_did_not_see_is_known_afterwards() {
    let mut node = Node::start();
    node.detached("three");
    let pid = node.pid("three");
    node.stop_daemon_and(|_| {
        signal(pid, "KILL");
        // The shim reaps it while nobody is there to be told.
        wait_for(|| (!Path::new("/proc").join(pid.to_string()).exists()).then_some(()));
    });
    assert!(node.ok("task ls").contains("STOPPED"));
    let removed = node.ctr("task rm three").output().unwrap();
    assert!(text(&removed).contains("exit code 137"), "{}", text(&removed));
    node.ok("container rm three");
    node.end();
}

/// containerd's shim of a release, which finds that release's runc.
fn with_runc(tree: &str, dir: &Path) -> PathBuf {
    let (shim, runc) =
        (programs::peer(tree, "containerd-shim-runc-v2").unwrap(), programs::peer(tree, "runc").unwrap());
    let script = dir.join(format!("shim-{tree}"));
    let path = runc.parent().unwrap().display();
    fs::write(&script, format!("#!/bin/sh\nPATH={path}:$PATH exec {} \"$@\"\n", shim.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn containerds_own_shim_and_runc_serve_as_well() {
    let node = Node::start();
    for tree in ["bookworm", "newer"] {
        let shim = with_runc(tree, node.dir.path());
        let rootfs = node.dir.path().join("rootfs");
        let run = |flags: &str, words: &str| {
            let words = format!("run --runtime {} {flags} --rootfs {} {words}", shim.display(), rootfs.display());
            node.ctr(&words).output().unwrap()
        };
        let out = run("--rm", "four /bin/echo hello");
        assert_eq!(text(&out), "hello\n", "{tree}: {}", node.daemon.log());
        assert!(run("-d", "five /bin/sleep 1000").status.success());
        assert_eq!(node.ok("task exec --exec-id e five /bin/echo there"), "there\n");
        signal(node.shim("five"), "KILL");
        wait_for(|| node.ok("task ls -q").is_empty().then_some(()));
        node.ok("container rm five");
    }
    node.end();
}

#[test]
fn a_runtime_that_is_not_there_is_named_and_nothing_is_made() {
    let node = Node::start();
    let rootfs = node.dir.path().join("rootfs");
    for (runtime, word) in [("io.containerd.nope.v2", "containerd-shim-nope-v2"), ("/no/such/shim", "/no/such/shim")] {
        let words = format!("run --rm --runtime {runtime} --rootfs {} six /bin/echo", rootfs.display());
        let out = node.ctr(&words).output().unwrap();
        assert!(!out.status.success() && text(&out).contains(word), "{}", text(&out));
        assert_eq!(node.ok("task ls -q"), "");
    }
    node.end();
}
