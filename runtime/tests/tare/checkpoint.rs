//! Checkpoint and restore with CRIU.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bundle::{Bundle, answer, peer};
use crate::terminal::sent_to;

/// Counts the lines that it reads, in memory alone: one that goes on knows how many there were before.
const COUNTER: &str = "n=0; while read line; do n=$((n+1)); echo $n $line; done; exit 7";

/// A process's standard streams, as pipes.
struct Talk {
    input: File,
    output: BufReader<File>,
    errors: File,
    theirs: [OwnedFd; 3],
}

impl Talk {
    fn new() -> Talk {
        let (input, output, errors) = (pipe(), pipe(), pipe());
        rustix::fs::fcntl_setfl(&errors.0, rustix::fs::OFlags::NONBLOCK).unwrap();
        Talk {
            input: input.1.into(),
            output: BufReader::new(output.0.into()),
            errors: errors.0.into(),
            theirs: [input.0, output.1, errors.1],
        }
    }

    fn give(&self, command: &mut Command) {
        let [input, output, errors] = self.theirs.each_ref().map(|end| end.try_clone().unwrap());
        command.stdin(input).stdout(output).stderr(errors);
    }

    /// A command that leaves a process behind with these.
    fn done(&self, mut command: Command) {
        self.give(&mut command);
        let status = command.status().unwrap();
        assert!(status.success(), "{command:?}: {}", self.said());
    }

    /// What was said so far of errors.
    fn said(&self) -> String {
        use std::io::Read as _;
        let mut text = Vec::new();
        let end = (&self.errors).read_to_end(&mut text);
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        String::from_utf8_lossy(&text).into_owned()
    }

    fn say(&mut self, line: &str) -> String {
        self.input.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn text_of(mut file: File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// With a root that CRIU can restore: one that is read-only it cannot change to.
fn bundle() -> Bundle {
    Bundle::new().set("/root/readonly", json!(false)).script(COUNTER)
}

/// A command with CRIU on its PATH, which is not to change how packets are filtered on this machine.
fn with_criu(mut command: Command) -> Command {
    let criu = peer(&["criu/usr/sbin/criu", "criu/usr/bin/criu"]);
    let path = format!("{}:{}", criu.parent().unwrap().display(), std::env::var("PATH").unwrap());
    command.env("PATH", path);
    command
}

fn checkpoint(bundle: &Bundle, more: &[&str]) {
    let words = [&["checkpoint", "--network-lock", "skip", "--image-path", "images"], more, &[&bundle.id]].concat();
    let ended = answer(&mut with_criu(bundle.command(&words)));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

fn restoring(bundle: &Bundle, more: &[&str]) -> Command {
    with_criu(bundle.command(&[&["restore", "--image-path", "images"], more, &[&bundle.id]].concat()))
}

#[test]
fn a_container_goes_on_where_it_was() {
    let bundle = bundle();
    let mut talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    assert_eq!(talk.say("before"), "1 before");
    for more in 2..4 {
        checkpoint(&bundle, &["--work-path", "work"]);
        bundle.assert_gone();
        talk = Talk::new();
        talk.done(restoring(&bundle, &["--detach", "--work-path", "work", "--pid-file", "pid"]));
        assert_eq!(talk.say("after"), format!("{more} after"));
        assert_eq!(bundle.status(), "running");
        assert_eq!(std::fs::read_to_string(bundle.path("pid")).unwrap(), bundle.pid().to_string());
    }
    let inside = answer(&mut bundle.command(&["exec", &bundle.id, "sh", "-c", "echo $PPID"]));
    assert_eq!((inside.code, inside.out.as_str()), (Some(0), "0\n"), "{inside:?}");
    bundle.done(&["delete", "--force", &bundle.id]);
    bundle.assert_gone();
}

#[test]
fn a_container_may_go_on_and_stays_paused_if_it_was() {
    let bundle = bundle();
    let mut talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    checkpoint(&bundle, &["--leave-running"]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(talk.say("still"), "1 still");
    bundle.done(&["pause", &bundle.id]);
    checkpoint(&bundle, &["--leave-running"]);
    assert_eq!(bundle.status(), "paused");
    bundle.done(&["resume", &bundle.id]);
    assert_eq!(talk.say("again"), "2 again");
}

/// As a shim hands in: the fifos of a client, which lie in no mount of the container's.
#[test]
fn files_of_the_host_as_standard_streams_are_exchanged_for_those_of_restore() {
    let bundle = bundle().script("echo before; read line; echo after");
    let open = |name: &str| {
        let path = bundle.path(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    };
    let run = |mut command: Command, input: &File, output: &File| {
        let files = (input.try_clone().unwrap(), output.try_clone().unwrap());
        let errors = tempfile::tempfile().unwrap();
        let status = command.stdin(files.0).stdout(files.1).stderr(errors.try_clone().unwrap()).status().unwrap();
        assert!(status.success(), "{}", text_of(errors));
    };
    let line = |output: &File| {
        let mut line = String::new();
        BufReader::new(output.try_clone().unwrap()).read_line(&mut line).unwrap();
        line
    };
    let (input, output) = (open("in-1"), open("out-1"));
    run(bundle.command(&["run", "--detach", &bundle.id]), &input, &output);
    assert_eq!(line(&output), "before\n");
    checkpoint(&bundle, &[]);
    let (mut input, output) = (open("in-2"), open("out-2"));
    run(restoring(&bundle, &["--detach"]), &input, &output);
    input.write_all(b"go\n").unwrap();
    assert_eq!(line(&output), "after\n");
}

#[test]
fn mounts_masks_and_hooks_are_as_they_were() {
    let bundle = bundle();
    let shared = bundle.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("word"), "kept").unwrap();
    let hook = format!("cat > {}", bundle.path("hook").display());
    let bundle = bundle
        .mount(json!({"destination": "/bound", "type": "bind", "source": "shared", "options": ["bind", "ro"]}))
        .mount(json!({"destination": "/memory", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/memory/below", "type": "bind", "source": shared, "options": ["bind"]}))
        .set("/hooks", json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]}));
    let talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    bundle.done(&["exec", &bundle.id, "sh", "-c", "echo in memory > /memory/word"]);
    let looks = || {
        let script = "cat /memory/word /bound/word /memory/below/word; touch /bound/x; ls /proc/acpi; cat /proc/keys; \
                      echo > /proc/sys/kernel/hostname; cat /proc/self/mountinfo";
        let seen = answer(&mut bundle.command(&["exec", &bundle.id, "sh", "-c", script]));
        // Identities of mounts and superblocks are new ones.
        let mounts = |line: &str| line.split(' ').skip(3).collect::<Vec<_>>().join(" ");
        let out: Vec<String> =
            seen.out.lines().map(|line| if line.contains(" - ") { mounts(line) } else { line.into() }).collect();
        (out, seen.err)
    };
    let before = looks();
    std::fs::remove_file(bundle.path("hook")).unwrap();
    checkpoint(&bundle, &[]);
    let talk = Talk::new();
    talk.done(restoring(&bundle, &["--detach"]));
    let after = looks();
    let (mut sorted, mut expected) = (after.0, before.0);
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    assert_eq!(after.1, before.1);
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle.path("hook")).unwrap()).unwrap();
    assert_eq!(told["pid"], bundle.pid());
}

#[test]
fn in_the_foreground_the_end_is_the_end_of_restore() {
    let bundle = bundle();
    let mut talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    assert_eq!(talk.say("one"), "1 one");
    checkpoint(&bundle, &[]);
    let talk = Talk::new();
    let mut restore = restoring(&bundle, &[]);
    talk.give(&mut restore);
    let mut running = restore.spawn().unwrap();
    drop(restore); // and with it our copies of its streams
    let Talk { mut input, mut output, .. } = talk;
    input.write_all(b"two\n").unwrap();
    drop(input); // the end of its input is its own
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "2 two\n");
    assert_eq!(running.wait().unwrap().code(), Some(7));
    bundle.assert_gone();
}

#[test]
fn a_terminal_goes_to_whoever_restores() {
    let bundle = bundle().set("/process/terminal", json!(true));
    let talk = |master: &mut File, line: &str, expected: &str| {
        master.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut heard = String::new();
        while !heard.contains(expected) {
            let mut buffer = [0; 1000];
            let length = std::io::Read::read(master, &mut buffer).unwrap();
            heard += &String::from_utf8_lossy(&buffer[..length]);
        }
    };
    let listener = UnixListener::bind(bundle.path("socket")).unwrap();
    bundle.done(&["run", "--detach", "--console-socket", "socket", &bundle.id]);
    let mut master = sent_to(&listener);
    talk(&mut master, "one", "1 one\r\n");
    checkpoint(&bundle, &[]);
    drop(master);
    let restored = restoring(&bundle, &["--detach", "--console-socket", "socket"]).stderr(Stdio::null()).status();
    assert!(restored.unwrap().success());
    talk(&mut sent_to(&listener), "two", "2 two\r\n");
}

/// The root was mounted once more for CRIU: what removes the container must not find the way there.
#[test]
fn a_restore_that_is_killed_leaves_the_root_as_it_is_and_nothing_else() {
    let bundle = bundle();
    let talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    checkpoint(&bundle, &[]);
    // A hook tells when it is in the middle, and holds it there.
    let (told, hold) = (bundle.path("told"), bundle.path("hold"));
    for fifo in [&told, &hold] {
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }
    let script = format!("echo > {}; read line < {}", told.display(), hold.display());
    let bundle = bundle.set("/hooks", json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}));
    let talk = Talk::new();
    let mut restore = restoring(&bundle, &["--detach"]);
    talk.give(&mut restore);
    let mut running = restore.spawn().unwrap();
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "\n");
    running.kill().unwrap();
    running.wait().unwrap();
    File::options().read(true).write(true).open(&hold).unwrap().write_all(b"\n").unwrap();
    bundle.done(&["delete", "--force", &bundle.id]);
    bundle.assert_gone();
    assert!(bundle.path("rootfs/bin/busybox").is_file());
}

#[test]
fn runc_restores_what_tare_has_dumped_and_the_other_way_round() {
    let runc = peer(&["newer/usr/bin/runc"]);
    let bundle = bundle();
    let config = bundle.path("criu.conf");
    std::fs::write(&config, "network-lock skip\n").unwrap();
    let bundle = bundle.set("/annotations", json!({"org.criu.config": config}));
    let mut talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    assert_eq!(talk.say("tare"), "1 tare");
    let dump = ["checkpoint", "--image-path", "images", &bundle.id];
    let restore = ["restore", "--detach", "--image-path", "images", &bundle.id];
    let ended = answer(&mut with_criu(bundle.command(&dump)));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut talk = Talk::new();
    talk.done(with_criu(bundle.command_of(&runc, &restore)));
    assert_eq!(talk.say("runc"), "2 runc");
    let ended = answer(&mut with_criu(bundle.command_of(&runc, &dump)));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut talk = Talk::new();
    talk.done(with_criu(bundle.command(&restore)));
    assert_eq!(talk.say("tare"), "3 tare");
}

#[test]
fn what_cannot_be_done_is_told_and_leaves_nothing() {
    let bundle = bundle();
    bundle.done(&["create", &bundle.id]);
    let said = bundle.fails(&["checkpoint", &bundle.id]);
    assert!(said.contains("container cannot be checkpointed in created state"), "{said}");
    bundle.done(&["delete", "--force", &bundle.id]);

    let talk = Talk::new();
    talk.done(bundle.command(&["run", "--detach", &bundle.id]));
    for (flags, expected) in [
        (&["--empty-ns", "pid"][..], "--empty-ns: namespace \\\"pid\\\" is not supported"),
        (&["--page-server", "here"], "use --page-server ADDRESS:PORT to specify page server"),
        (&["--status-fd", "99"], "invalid --status-fd argument 99: bad file descriptor"),
        (&["--manage-cgroups-mode", "x"], "--manage-cgroups-mode: \\\"x\\\" is not soft, full, strict or ignore"),
        (&["--parent-path", "/x"], "--parent-path: must be relative"),
    ] {
        let said = bundle.fails(&[&["checkpoint"], flags, &[&bundle.id]].concat());
        assert!(said.contains(expected), "{said}");
    }
    let without = bundle.command(&["checkpoint", &bundle.id]).env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(said.contains("exec: \\\"criu\\\": executable file not found in $PATH"), "{said}");
    assert_eq!(bundle.status(), "running");
    bundle.done(&["delete", "--force", &bundle.id]);

    std::fs::create_dir(bundle.path("images")).unwrap();
    std::fs::write(bundle.path("images/descriptors.json"), "[]").unwrap();
    let ended = answer(&mut restoring(&bundle, &["--detach"]));
    assert_eq!(ended.code, Some(1));
    let log = bundle.path("images/restore.log");
    assert!(ended.err.contains("criu failed: type RESTORE errno 0: "), "{ended:?}");
    assert!(ended.err.contains(&format!("(log file: {})", real(&log).display())), "{ended:?}");
    bundle.assert_gone();
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap()
}
