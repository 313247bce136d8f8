//! Under Debian's own containerd, driven by its own `ctr`: each promise on two releases, under our name and installed
//! under the name of containerd's own shim. The programs under test are those that `cargo xtask test` installs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::{image, programs};
use tempfile::TempDir;

const IMAGE: &str = "localhost/busybox:latest";

/// A private containerd that knows one image; everything goes when it is dropped.
struct Node {
    daemon: Daemon,
    tree: &'static str,
    runtime: String,
    /// Part of every container's name: names are shared by all who use the runtime's root.
    mark: String,
    dir: TempDir,
}

impl Node {
    fn start(tree: &'static str, runtime: &str) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-shim.").tempdir().unwrap();
        let daemon = Daemon::start(Kind::Containerd(tree), dir.path()).unwrap();
        let mark = dir.path().extension().unwrap().to_string_lossy().to_lowercase();
        let node = Node { daemon, tree, runtime: runtime.into(), mark, dir };
        let archive = node.dir.path().join("image.tar");
        fs::write(&archive, image::busybox().unwrap().archive(IMAGE).unwrap()).unwrap();
        node.ok(&["image", "import", archive.to_str().unwrap()]);
        node
    }

    fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut ctr = self.daemon.ctr(self.tree).unwrap();
        ctr.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ctr
    }

    fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        let words = [&["run", "--runtime", &self.runtime], flags, &[IMAGE, id], command].concat();
        self.ctr(&words)
    }

    fn ok(&self, words: &[&str]) -> String {
        self.check(words, self.ctr(words).output().unwrap())
    }

    fn check(&self, words: &[&str], out: Output) -> String {
        assert!(out.status.success(), "ctr {words:?}: {}\n{}\n{}", out.status, text(&out), self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    fn detached(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let id = self.id(name);
        let out = self.run(&[&["-d"], flags].concat(), &id, command).output().unwrap();
        self.check(&["run", "-d", name], out);
        id
    }

    /// Kills a task and removes all that there is of it.
    fn remove(&self, id: &str) {
        self.ok(&["task", "kill", "-s", "KILL", id]);
        while !self.stopped(id) {}
        let removed = self.ctr(&["task", "rm", id]).output().unwrap();
        assert!(text(&removed).contains("137") || removed.status.code() == Some(137), "{}", text(&removed));
        self.ok(&["container", "rm", id]);
    }

    fn stopped(&self, id: &str) -> bool {
        self.ok(&["task", "ls"]).lines().any(|line| line.contains(id) && line.contains("STOPPED"))
    }

    /// The serving process of a container.
    fn shim(&self, id: &str) -> (Pid, OwnedFd) {
        let socket = self.daemon.socket().display().to_string();
        let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let has = |word: &str| words.iter().any(|there| there == word);
            (words[0].contains("containerd-shim-") && has(id) && has(&socket) && !has("start")).then_some(pid)
        });
        let pid = Pid::from_raw(found.expect("a shim serves the container")).unwrap();
        (pid, pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    /// Stops the daemon and looks for what is left.
    fn end(self) {
        let (private, mark) = (self.dir.path().display().to_string(), self.mark.clone());
        assert_eq!(self.ok(&["task", "ls", "-q"]), "");
        drop(self.daemon);
        let left = Inventory::of(&[&private, &mark]);
        assert!(left.is_empty(), "left behind: {left:#?}");
        let root = Path::new("/run/tare/default");
        let states = fs::read_dir(root).into_iter().flatten().flatten();
        let states: Vec<_> = states.filter(|entry| entry.file_name().to_string_lossy().contains(&mark)).collect();
        assert!(states.is_empty(), "left in {}: {states:?}", root.display());
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Waits for the end of a process that is not our child.
fn gone(pidfd: &OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

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
