//! Debian's docker and its containerd, unchanged, run everything with `tare`.

use std::process::{Command, Output};

use tare_integration::dockerd::Dockerd;
use tempfile::TempDir;

/// A daemon with the image `busybox`, gone when dropped.
struct Node {
    dockerd: Dockerd,
    dir: TempDir,
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-docker.").tempdir().unwrap();
        let dockerd = Dockerd::start(dir.path()).unwrap();
        dockerd.import_busybox().unwrap();
        Node { dockerd, dir }
    }

    /// Docker with `words`, and a shell's `script` as the last one. Containers have no network.
    fn docker(&self, words: &str, script: Option<&str>) -> Command {
        let words = words.split_whitespace().flat_map(|word| match word {
            "run" => vec!["run", "--network=none"],
            word => vec![word],
        });
        self.dockerd.docker(words.chain(script)).unwrap()
    }

    fn out(&self, words: &str, script: Option<&str>) -> Output {
        self.docker(words, script).output().unwrap()
    }

    /// What docker prints; a failure ends the test with what it said.
    fn ok(&self, words: &str) -> String {
        self.succeeded(words, &self.out(words, None))
    }

    /// The same for a command whose last word is a script.
    fn sh(&self, words: &str, script: &str) -> String {
        self.succeeded(words, &self.out(&format!("{words} sh -c"), Some(script)))
    }

    fn succeeded(&self, words: &str, out: &Output) -> String {
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "docker {words}: {}\n{said}\n{}", out.status, self.dockerd.log());
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }
}

/// One daemon for all of it: starting one takes longer than everything that it is then asked.
#[test]
fn docker_runs_looks_into_limits_builds_and_ends_containers() {
    let node = Node::new();
    a_container_s_life(&node);
    what_a_process_gets(&node);
    exit_codes(&node);
    a_build(&node);
    assert_eq!(node.ok("ps --all --quiet"), "");
}

fn a_container_s_life(node: &Node) {
    node.ok("run -d --name box --memory 64m --pids-limit 50 --cpus 0.5 busybox sleep 1000");
    assert_eq!(node.ok("inspect box --format {{.HostConfig.Runtime}}"), "tare");
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    assert_eq!(node.sh("exec box", limit), "67108864");
    node.ok("update --memory 96m --memory-swap 128m --pids-limit 60 box");
    assert_eq!(node.sh("exec box", limit), "100663296");
    let stats = node.ok("stats --no-stream --format {{.PIDs}}/{{.MemUsage}} box");
    assert!(stats.starts_with("1/") && stats.ends_with("/ 96MiB"), "{stats}");
    assert!(node.ok("top box").ends_with("sleep 1000"));
    node.ok("pause box");
    assert_eq!(node.ok("inspect box --format {{.State.Status}}"), "paused");
    node.ok("unpause box");
    assert_eq!(node.out("exec box sh -c", Some("exit 7")).status.code(), Some(7));
    assert_eq!(node.ok("exec -t box tty"), "/dev/pts/0");
    let missing = node.out("exec box nope", None);
    let said = String::from_utf8_lossy(&missing.stdout) + String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("exec: \"nope\": executable file not found in $PATH"), "{said}");
    node.ok("kill --signal KILL box");
    assert_eq!(node.ok("wait box"), "137");
    node.ok("start box");
    node.ok("rm --force box");
}

fn what_a_process_gets(node: &Node) {
    let options = "run --rm --user 7:8 --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=100:100 \
                   --oom-score-adj 300 --sysctl kernel.shmmax=10000 --device /dev/null:/dev/other --init busybox";
    let seen = "id -u; id -g; sed -n '/^CapBnd\\|^NoNewPrivs\\|^Seccomp:/p' /proc/self/status; ulimit -n; \
                cat /proc/self/oom_score_adj /proc/sys/kernel/shmmax; ls -l /dev/other | wc -l; sed q /proc/1/cmdline";
    let expected =
        "7\n8\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n100\n300\n10000\n1\n/sbin/docker-init";
    let said = node.sh(options, seen);
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(node.ok("run --rm -t busybox tty"), "/dev/pts/0");
    let refused = node.out("run --rm --read-only --tmpfs /foo busybox sh -c", Some("touch /foo/x && touch /x"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/x: Read-only file system"));
    // `runc`'s shim with our program by its BinaryName, and a container that may do all.
    assert_eq!(
        node.sh("run --rm --runtime tare-binary --privileged busybox", "mount -t tmpfs x /tmp && echo mounted"),
        "mounted"
    );
}

fn exit_codes(node: &Node) {
    assert_eq!(node.out("run --rm busybox sh -c", Some("exit 9")).status.code(), Some(9));
    assert_eq!(node.out("run --rm busybox nope", None).status.code(), Some(127));
    assert_eq!(node.out("run --rm --entrypoint /nope busybox", None).status.code(), Some(127));
    assert_eq!(node.out("run --rm busybox /etc", None).status.code(), Some(126));
}

/// Each step runs in a container.
fn a_build(node: &Node) {
    let context = node.dir.path().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nRUN echo built > /built\nCMD [\"cat\", \"/built\"]\n")
        .unwrap();
    let context = context.display().to_string();
    let build = ["build", "--network=none", "--quiet", "--tag=built", &context];
    let out = node.dockerd.docker(build).unwrap().env("DOCKER_BUILDKIT", "0").output().unwrap();
    node.succeeded("build", &out);
    assert_eq!(node.ok("run --rm built"), "built");
}
