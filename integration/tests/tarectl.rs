//! `tarectl` as a person uses it who knows docker.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, programs, registry::Registry};
use tempfile::TempDir;

/// tared with a registry beside it that holds `busybox:latest`.
struct Node {
    daemon: Daemon,
    registry: Registry,
    folder: std::path::PathBuf,
    _dir: TempDir,
}

impl Drop for Node {
    /// What a test that failed left running.
    fn drop(&mut self) {
        self.daemon.remove_containers();
    }
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-ctl.").tempdir().unwrap();
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
        Node { daemon, registry, folder: dir.path().to_owned(), _dir: dir }
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

    /// What it complains about, in one line, and its exit code.
    fn refused(&self, args: &[&str]) -> (i32, String) {
        let out = self.output(args);
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(said.trim_end().lines().count(), 1, "tarectl {args:?} said:\n{said}");
        (out.status.code().unwrap(), said)
    }

    /// Waits until `args` print what `there` looks for.
    fn until(&self, args: &[&str], there: impl Fn(&str) -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !there(&self.ok(args)) {
            assert!(Instant::now() < limit, "tarectl {args:?} never printed it\n{}", self.daemon.log());
        }
    }

    /// The output of a container that is removed afterwards.
    fn run(&self, flags: &[&str], command: &[&str]) -> String {
        let image = self.image();
        let net = if flags.contains(&"--network") { &[][..] } else { &["--net", "none"] };
        self.ok(&[&["run", "--rm"], net, flags, &[&image], command].concat())
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
    cat.stdin.take().unwrap().write_all(b"through and through").unwrap();
    let out = cat.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"through and through"[..]));
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "", "--rm leaves nothing");
}

#[test]
fn more_of_run_s_flags_mean_what_they_mean_in_docker() {
    let node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let env = file("env", "# variables\nA=from the file\nB=2\n");
    assert_eq!(node.run(&["--env-file", &env, "-e", "B=3"], &["sh", "-c", "echo $A $B"]), "from the file 3\n");
    assert_eq!(node.run(&["--group-add", "nogroup", "--group-add", "7"], &["id", "-G"]), "0 7 65534\n");
    assert_eq!(node.run(&["--ulimit", "nofile=64:128"], &["sh", "-c", "ulimit -n; ulimit -Hn"]), "64\n128\n");
    assert_eq!(node.run(&["--shm-size", "1m"], &["sh", "-c", "df -k /dev/shm | tail -1 | awk '{print $2}'"]), "1024\n");
    assert_eq!(node.run(&["--sysctl", "net.ipv4.ip_forward=1"], &["cat", "/proc/sys/net/ipv4/ip_forward"]), "1\n");
    assert_eq!(node.run(&["--domainname", "example"], &["cat", "/proc/sys/kernel/domainname"]), "example\n");
    assert_eq!(
        node.run(&["--security-opt", "no-new-privileges"], &["sed", "-n", "s/NoNewPrivs:.//p", "/proc/self/status"]),
        "1\n"
    );
    assert_eq!(
        node.run(&["--security-opt", "seccomp=unconfined"], &["sed", "-n", "s/Seccomp:.//p", "/proc/self/status"]),
        "0\n"
    );
    assert_eq!(
        node.run(
            &["--device", "/dev/null:/dev/mine:r"],
            &["sh", "-c", "cat /dev/mine; test -c /dev/mine && echo there"]
        ),
        "there\n"
    );
    assert_eq!(node.run(&["-w", "/made/for/me"], &["pwd"]), "/made/for/me\n");
    let source = dir.path().display();
    let mount = format!("type=bind,source={source},target=/m,readonly");
    assert_eq!(
        node.run(&["--mount", &mount], &["sh", "-c", "cat /m/env | wc -l; touch /m/x || echo refused"]),
        "3\nrefused\n"
    );
    let made = format!("{source}/made/by/us:/v");
    assert_eq!(node.run(&["-v", &made], &["sh", "-c", "echo kept >/v/f; cat /v/f"]), "kept\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("made/by/us/f")).unwrap(), "kept\n");
    let host = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string() + "\n";
    for (flag, kind) in
        [("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup"), ("--network", "net")]
    {
        let link = format!("/proc/self/ns/{kind}");
        assert_eq!(node.run(&[flag, "host"], &["readlink", &link]), host(kind), "{flag}");
    }
    let cidfile = dir.path().join("cid").display().to_string();
    node.run(&["--name", "named", "--cidfile", &cidfile], &["true"]);
    assert_eq!(std::fs::read_to_string(&cidfile).unwrap(), "named");
}

#[test]
fn a_container_s_whole_life_from_create_to_rm() {
    let node = Node::start();
    let image = node.image();
    let script = "trap 'echo bye; exit 5' TERM; echo out; echo err >&2; while :; do sleep 0.05; done";
    assert_eq!(node.ok(&["create", "--name", "web", "-l", "tier=front", &image, "sh", "-c", script]), "web\n");
    assert_eq!(node.ok(&["ps", "-q"]), "");
    assert!(node.ok(&["ps", "-a"]).contains("Created"));
    node.ok(&["start", "web"]);
    assert!(node.ok(&["ps"]).contains("Up "));
    node.until(&["logs", "web"], |text| text == "out\n");
    assert_eq!(node.ok(&["exec", "web", "echo", "inside"]), "inside\n");
    assert_eq!(node.ok(&["exec", "-u", "nobody", "-e", "A=1", "web", "sh", "-c", "id -u; echo $A"]), "65534\n1\n");
    assert_eq!(node.output(&["exec", "web", "sh", "-c", "exit 3"]).status.code(), Some(3));
    assert_eq!(node.output(&["exec", "web", "nope"]).status.code(), Some(127));
    assert!(node.ok(&["stats", "-o", "json"]).contains("\"web\""));
    assert!(node.ok(&["top", "web"]).contains("sh -c"));
    assert_eq!(node.ok(&["inspect", "-f", "{{.State.Status}} {{.Config.Labels.tier}}", "web"]), "running front\n");
    assert_eq!(node.ok(&["ps", "-f", "label=tier=front", "--format", "{{.Names}}\\t{{.State}}"]), "web\trunning\n");
    assert_eq!(node.ok(&["ps", "-a", "-q", "-f", "label=tier=back"]), "");
    node.ok(&["pause", "web"]);
    assert!(node.ok(&["ps"]).contains("(Paused)"));
    node.ok(&["unpause", "web"]);
    assert!(node.refused(&["rm", "web"]).1.contains("is running"));
    assert_eq!(node.ok(&["stop", "web"]), "web\n");
    assert!(node.ok(&["ps", "-a"]).contains("Exited (5)"));
    assert_eq!(node.ok(&["wait", "web"]), "5\n");
    assert_eq!(node.ok(&["logs", "web"]), "out\nbye\n");
    assert!(node.refused(&["exec", "web", "true"]).1.contains("is not running"));
    node.ok(&["restart", "web"]);
    node.ok(&["kill", "web"]);
    assert_eq!(node.ok(&["wait", "web"]), "137\n");
    node.ok(&["rm", "web"]);
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn what_was_printed_is_kept_whether_or_not_somebody_watched() {
    let node = Node::start();
    let image = node.image();
    let out = node.output(&[
        "run",
        "--net",
        "none",
        "--name",
        "loud",
        &image,
        "sh",
        "-c",
        "echo out; echo err >&2; printf '\\377\\000end'",
    ]);
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"out\n\xff\x00end"[..], &b"err\n"[..]));
    let logs = node.output(&["logs", "loud"]);
    assert_eq!((logs.stdout, logs.stderr), (out.stdout, out.stderr));
    // More than pipes hold, through a reader that follows from the start.
    node.ok(&["run", "-d", "--name", "long", &image, "sh", "-c", "seq 1 200000"]);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(node.ok(&["logs", "-f", "long"]) == expected, "following loses nothing");
    assert!(node.ok(&["logs", "long"]) == expected);
    assert_eq!(node.ok(&["logs", "--tail", "1", "long"]), "200000\n");
    let stamped = node.ok(&["logs", "-t", "-n", "2", "long"]);
    assert!(
        stamped.starts_with("20") && stamped.contains("Z 199999\n") && stamped.ends_with("Z 200000\n"),
        "{stamped}"
    );
}

#[test]
fn a_container_with_rm_is_gone_when_it_ends_whoever_watched() {
    let mut node = Node::start();
    let image = node.image();
    node.ok(&["run", "-d", "--rm", "--name", "brief", &image, "true"]);
    node.until(&["ps", "-a", "-q"], str::is_empty);
    // A client that is killed does not matter,
    let mut client = node.tarectl(&["run", "--rm", "--name", "orphan", &image, "sh", "-c", "echo up; sleep 1000"]);
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!((line.as_str(), node.ok(&["ps", "-q"]).as_str()), ("up\n", "orphan\n"));
    // nor does a daemon.
    node.daemon.crash_and_restart().unwrap();
    assert_eq!(node.ok(&["ps", "-q"]), "orphan\n");
    node.ok(&["kill", "orphan"]);
    node.until(&["ps", "-a", "-q"], str::is_empty);
    let folders = node.folder.join("root/containers/default");
    assert_eq!(std::fs::read_dir(folders).unwrap().count(), 0, "no log is left");
}

#[test]
fn a_terminal_is_attached_to_left_and_found_again() {
    let node = Node::start();
    let image = node.image();
    node.ok(&["run", "-d", "-i", "-t", "--name", "term", &image, "sh"]);
    assert_eq!(node.ok(&["exec", "term", "sh", "-c", "test -t 0 </proc/1/fd/0 && echo terminal"]), "terminal\n");
    // script(1) gives tarectl a terminal, as a person has one.
    let attach = || {
        let socket = node.daemon.socket();
        let command =
            format!("{} --address {} attach term", programs::tare("tarectl").unwrap().display(), socket.display());
        Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut first = attach();
    let mut input = first.stdin.take().unwrap();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    input.write_all(b"kept=$((40+2))\necho value:$kept\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("value:42") {
        seen.clear();
        assert!(output.read_line(&mut seen).unwrap() > 0);
    }
    input.write_all(b"\x10\x11").unwrap();
    assert!(first.wait().unwrap().success());
    assert_eq!(node.ok(&["ps", "-q"]), "term\n", "it goes on");
    let mut second = attach();
    second.stdin.as_mut().unwrap().write_all(b"exit $kept\n").unwrap();
    let mut rest = String::new();
    second.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(42), "{rest}");
    assert!(node.ok(&["logs", "term"]).contains("value:42"));
}

#[test]
fn images_are_pulled_named_and_removed() {
    let node = Node::start();
    let image = node.image();
    let full = format!("{image}:latest");
    assert_eq!(node.ok(&["pull", "-q", &image]), format!("{full}\n"));
    node.ok(&["tag", &image, "localhost/mine:1"]);
    let mut names: Vec<String> = node.ok(&["images", "--format", "{{.Name}}"]).lines().map(str::to_owned).collect();
    names.sort();
    let mut expected = vec![full, "localhost/mine:1".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    let id = node.ok(&["images", "-q"]);
    assert_eq!((id.len(), id.lines().count()), (13, 1), "two names of one image: {id}");
    assert_eq!(node.ok(&["inspect", "-f", "{{.Os}}", id.trim()]), "linux\n");
    assert_eq!(node.ok(&["images", "-f", "reference=*mine*", "--format", "{{.Tag}}"]), "1\n");
    node.ok(&["rmi", &image]);
    assert_eq!(
        node.ok(&["run", "--name", "user", "localhost/mine:1", "echo", "kept"]),
        "kept\n",
        "the other name keeps the layers"
    );
    assert!(node.refused(&["rmi", "localhost/mine:1"]).1.contains("is used by container user"));
    node.ok(&["rm", "user"]);
    node.ok(&["rmi", id.trim()]);
    assert_eq!(node.ok(&["images", "-q"]), "");
}

#[test]
fn an_image_goes_out_and_comes_back_by_registry_and_by_archive() {
    let node = Node::start();
    let image = node.image();
    node.ok(&["pull", "-q", &image]);
    let other = node.registry.reference("other:2");
    node.ok(&["tag", &image, &other]);
    assert_eq!(node.ok(&["push", &other]), format!("{other}\n"));
    let archive = node.folder.join("images.tar").display().to_string();
    node.ok(&["save", "-o", &archive, &image, &other]);
    node.ok(&["rmi", &image, &other]);
    assert!(
        node.refused(&["run", "--rm", "--net", "none", "--pull", "never", &image, "true"]).1.contains("no such image")
    );
    assert_eq!(node.ok(&["load", "-i", &archive]).lines().count(), 2);
    assert_eq!(node.run(&["--pull", "never"], &["echo", "loaded"]), "loaded\n");
    node.ok(&["rmi", &other]);
    assert_eq!(node.ok(&["run", "--rm", "--net", "none", &other, "echo", "pulled"]), "pulled\n");
}

#[test]
fn what_is_wrong_is_told_in_one_line_with_docker_s_exit_code() {
    let node = Node::start();
    let image = node.image();
    node.ok(&["pull", "-q", &image]);
    let none = node.registry.reference("none");
    for (args, code, words) in [
        (&["run", "--rm", &image, "nope"][..], 127, "\"nope\": executable file not found in $PATH"),
        (&["run", "--rm", &image, "/etc/passwd"], 126, "permission denied"),
        (&["run", "--rm", &none, "x"], 125, "not found"),
        (&["run", "--rm", "-u", "4294967296", &image, "x"], 125, "is not a user or group id"),
        (&["run", "--rm", "-u", "nobody:none", &image, "x"], 125, "unable to find group none"),
        (&["run", "--rm", "--color", &image], 125, "unexpected argument '--color'"),
        (&["run"], 125, "<IMAGE>"),
        (&["run", "--rm", "--cpus", "nan", &image], 125, "--cpus"),
        (&["run", "--rm", "-m", "1m", &image], 125, "--memory"),
        (&["run", "--rm", "-v", "data:/data", &image], 125, "named volumes are not supported"),
        (&["run", "--rm", "--mount", "type=volume,target=/x", &image], 125, "type=volume is not supported"),
        (&["run", "--rm", "--cap-add", "FROB", &image], 125, "unknown capability"),
        (&["run", "--rm", "--restart", "always", &image], 125, "cannot be used with"),
        (&["run", "--pull", "never", "missing", "x"], 125, "no such image"),
        (&["run", "--rm", "-w", "relative", &image, "true"], 125, "is not an absolute path"),
        (&["run", "--rm", "--pid", "container:none", &image, "true"], 125, "no such container: none"),
        (&["run", "--rm", "-p", "80", &image, "true"], 125, "--publish: needs a network"),
        (&["run", "-i", "-t", "--rm", &image, "sh"], 125, "not a TTY"),
        (&["kill", "none"], 1, "no such container: none"),
        (&["kill", "-s", "NONE", "x"], 1, "invalid signal"),
        (&["inspect", "none"], 1, "no such object: none"),
        (&["frob"], 125, "unrecognized subcommand 'frob'"),
        (&["--address", "/nonexistent", "version"], 1, "connecting to tared at /nonexistent"),
    ] {
        // Without plugins, a container that asks for no network is told that it has none.
        let args = &[&args[..1], if args[0] == "run" && args.len() > 1 { &["--net", "none"] } else { &[] }, &args[1..]]
            .concat();
        let (found, said) = if args[0] == "inspect" {
            let out = node.output(args);
            (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
        } else {
            node.refused(args)
        };
        assert!(found == code && said.starts_with("tarectl: ") && said.contains(words), "{args:?}: {found} {said}");
    }
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "", "a run that failed leaves nothing");
}
