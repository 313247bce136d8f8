//! Debian's podman and conmon, unchanged, run everything with `tare`.

use std::process::{Command, Output};

use tare_integration::podman::Podman;
use tempfile::TempDir;

/// Podman with the image `tare.test/busybox`, gone when dropped.
struct Node {
    podman: Podman,
    _dir: TempDir,
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-podman.").tempdir().unwrap();
        let podman = Podman::new(dir.path()).unwrap();
        podman.import_busybox().unwrap();
        Node { podman, _dir: dir }
    }

    /// Podman with `words`, in which `IMAGE` is the image, and a shell's `script` as the last one.
    fn podman(&self, words: &str, script: Option<&str>) -> Command {
        let parent = format!("--cgroup-parent=/{}", self.podman.parent);
        let words = words.split_whitespace().enumerate().flat_map(|(at, word)| match word {
            "run" if at == 0 => vec!["run", &parent],
            "IMAGE" => vec!["tare.test/busybox"],
            word => vec![word],
        });
        self.podman.command(words.chain(script)).unwrap()
    }

    fn out(&self, words: &str, script: Option<&str>) -> Output {
        self.podman(words, script).output().unwrap()
    }

    /// What podman prints; a failure ends the test with what it said.
    fn ok(&self, words: &str) -> String {
        succeeded(words, &self.out(words, None))
    }

    /// The same for a command whose last word is a script.
    fn sh(&self, words: &str, script: &str) -> String {
        succeeded(words, &self.out(&format!("{words} sh -c"), Some(script)))
    }

    /// The exit code of a command that fails, and what it said.
    fn fails(&self, words: &str) -> (i32, String) {
        let out = self.out(words, None);
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).trim().to_owned())
    }
}

fn succeeded(words: &str, out: &Output) -> String {
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "podman {words}: {}\n{said}", out.status);
    String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
}

#[test]
fn a_container_is_limited_looked_into_held_and_ended() {
    let node = Node::new();
    node.ok("run -d --name box --memory 64m --memory-swap 128m --pids-limit 50 --cpus 0.5 IMAGE sleep 1000");
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    assert_eq!(node.sh("exec box", limit), "67108864");
    node.ok("update --memory 96m --memory-swap 128m --pids-limit 60 box");
    assert_eq!(node.sh("exec box", limit), "100663296");

    let stats: serde_json::Value = serde_json::from_str(&node.ok("stats --no-stream --format json box")).unwrap();
    assert_eq!((&stats[0]["pids"], &stats[0]["name"]), (&"1".into(), &"box".into()), "{stats}");
    assert!(stats[0]["mem_usage"].as_str().unwrap().ends_with("/ 100.7MB"), "{stats}");
    assert!(node.ok("top box comm").ends_with("sleep"));

    node.ok("pause box");
    assert_eq!(node.ok("inspect box --format {{.State.Status}}"), "paused");
    node.ok("unpause box");
    assert_eq!(node.ok("inspect box --format {{.State.Status}}/{{.OCIRuntime}}"), "running/tare");
    node.ok("kill --signal CONT box");
    node.ok("stop --time 0 box");
    assert_eq!(node.ok("inspect box --format {{.State.Status}}/{{.State.ExitCode}}"), "exited/137");
    node.ok("start box");
    node.ok("restart --time 0 box");
    node.ok("rm --force --time 0 box");
    assert_eq!(node.ok("ps --all --quiet"), "");
}

#[test]
fn a_process_more_has_its_terminal_user_and_exit_code() {
    let node = Node::new();
    node.ok("run -d --name box IMAGE sleep 1000");
    assert_eq!(node.sh("exec --user 65534 --workdir /tmp --env A=b box", "id -u; pwd; echo $A"), "65534\n/tmp\nb");
    assert_eq!(node.ok("exec -t box tty"), "/dev/pts/0");
    assert_eq!(node.out("exec box sh -c", Some("exit 7")).status.code(), Some(7));
    let (code, said) = node.fails("exec box nope");
    assert!(code == 127 && said.contains("exec: \"nope\": executable file not found in $PATH"), "{code}: {said}");
    node.ok("exec -d box touch /tmp/detached");
    while !node.out("exec box ls /tmp/detached", None).status.success() {}
    assert_eq!(node.ok("run --rm -t IMAGE tty"), "/dev/pts/0");
}

#[test]
fn exit_codes_and_output_come_through() {
    let node = Node::new();
    assert_eq!(node.sh("run --name said IMAGE", "echo out; echo err >&2"), "out");
    assert_eq!(node.ok("logs said"), "out");
    assert_eq!(node.out("run --rm IMAGE sh -c", Some("exit 9")).status.code(), Some(9));
    assert_eq!(node.fails("run --rm IMAGE nope").0, 127);
    assert_eq!(node.fails("run --rm --entrypoint /nope IMAGE").0, 127);
    assert_eq!(node.fails("run --rm IMAGE /etc").0, 126);
}

#[test]
fn options_reach_the_container() {
    let node = Node::new();
    let options = "run --rm --user 7:8 --cap-drop all --security-opt no-new-privileges --ulimit nofile=100:100 \
                   --oom-score-adj 300 --sysctl kernel.shmmax=10000 --device /dev/null:/dev/other --init IMAGE";
    let seen = "id -u; id -g; sed -n '/^CapBnd\\|^NoNewPrivs\\|^Seccomp:/p' /proc/self/status; ulimit -n; \
                cat /proc/self/oom_score_adj /proc/sys/kernel/shmmax; ls -l /dev/other | wc -l; sed q /proc/1/cmdline";
    let expected = "7\n8\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n100\n300\n10000\n1\n/run/podman-init";
    assert!(node.sh(options, seen).starts_with(expected), "{}", node.sh(options, seen));
    let refused = node.out(
        "run --rm --read-only --read-only-tmpfs=false --volume /tmp:/mnt:ro IMAGE sh -c",
        Some("touch /x; touch /mnt/x"),
    );
    assert_eq!(String::from_utf8_lossy(&refused.stderr).matches("Read-only file system").count(), 2);
    let mapped = node.ok("run --rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 IMAGE cat /proc/self/uid_map");
    assert_eq!(mapped.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
}

#[test]
fn a_container_without_cgroups_stays_where_podman_is() {
    let node = Node::new();
    let run = ["run", "-d", "--name=box", "--cgroups=disabled", "tare.test/busybox", "sleep", "1000"];
    succeeded("run", &node.podman.command(run).unwrap().output().unwrap());
    let ours = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let at_root = |text: &str| text.lines().all(|line| line.ends_with(":/"));
    let seen = node.ok("exec box cat /proc/self/cgroup");
    // In its own cgroup namespace what is ours is its root.
    assert!(seen == ours.trim_end() || at_root(&seen), "{seen}\nours: {ours}");
    node.ok("rm --force --time 0 box");
}

#[test]
fn a_pod_shares_what_it_says() {
    let node = Node::new();
    let parent = format!("--cgroup-parent=/{}", node.podman.parent);
    node.ok(&format!("pod create {parent} --name pod --share ipc,uts,net --hostname together"));
    succeeded(
        "run",
        &node
            .podman
            .command(["run", "-d", "--pod=pod", "--name=one", "tare.test/busybox", "sleep", "1000"])
            .unwrap()
            .output()
            .unwrap(),
    );
    assert_eq!(node.ok("exec one hostname"), "together");
    assert!(node.ok("pod ps --format {{.Status}}/{{.NumberOfContainers}}").starts_with("Running/2"));
    node.ok("pod pause pod");
    node.ok("pod unpause pod");
    node.ok("pod stop --time 0 pod");
    node.ok("pod rm --force --time 0 pod");
}

#[test]
fn a_healthcheck_is_run_and_believed() {
    let node = Node::new();
    for (name, command, health) in [("well", "true", "healthy"), ("ill", "false", "unhealthy")] {
        let options = "--health-interval=disable --health-retries=1";
        node.ok(&format!("run -d --name {name} --health-cmd {command} {options} IMAGE sleep 1000"));
        assert_eq!(node.out(&format!("healthcheck run {name}"), None).status.success(), health == "healthy");
        assert_eq!(node.ok(&format!("inspect {name} --format {{{{.State.Health.Status}}}}")), health);
    }
}
