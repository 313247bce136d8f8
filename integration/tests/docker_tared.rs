//! Debian's docker, unchanged, on tared in containerd's place: as the one that runs its tasks, and as its image store.

use tare_integration::dockerd::Dockerd;

struct Node {
    dockerd: Dockerd,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(image_store: bool) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-docker.").tempdir().unwrap();
        let dockerd = Dockerd::start_on_tared(dir.path(), image_store).unwrap();
        dockerd.import_busybox().unwrap();
        Node { dockerd, dir }
    }

    fn docker(&self, words: &[&str]) -> (Option<i32>, String) {
        let out = self.dockerd.docker(words.iter().copied()).unwrap().env("DOCKER_BUILDKIT", "0").output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.code(), String::from_utf8_lossy(&said).trim_end().to_owned())
    }

    fn ok(&self, words: &str) -> String {
        let (code, said) = self.docker(&words.split_whitespace().collect::<Vec<_>>());
        assert_eq!(code, Some(0), "docker {words}: {said}\n{}\n{}", self.dockerd.log(), self.tared_log());
        said
    }

    fn tared_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("tared.log")).unwrap_or_default()
    }
}

#[test]
fn docker_with_its_own_images_runs_its_tasks_on_tared() {
    let node = Node::start(false);
    assert!(node.ok("version").contains("2.3.0+tare."), "docker tells whom it runs on");
    node.ok("run -d --name box --network none busybox sleep 1000");
    assert_eq!(node.ok("exec box echo inside"), "inside");
    assert_eq!(node.docker(&["exec", "box", "sh", "-c", "exit 5"]).0, Some(5));
    assert!(node.ok("top box").ends_with("sleep 1000"));
    node.ok("restart -t 0 box");
    node.ok("kill box");
    assert_eq!(node.ok("wait box"), "137");
    node.docker(&["run", "--network", "none", "--name", "again", "--restart", "on-failure:1", "busybox", "false"]);
    assert_eq!(node.ok("wait again"), "1");
    assert_eq!(node.ok("inspect again --format {{.RestartCount}}"), "1");
    node.ok("rm -f again box");
}

#[test]
fn docker_keeps_its_images_in_tared_commits_builds_and_removes_them() {
    let node = Node::start(true);
    node.ok("run -d --name box --network none busybox sleep 1000");
    node.ok("exec box touch /made");
    node.ok("commit box made");
    assert_eq!(node.ok("run --rm --network none made ls /made"), "/made");
    node.ok("rm -f box");
    a_build(&node);
    node.ok(&format!("save -o {} busybox", node.dir.path().join("saved.tar").display()));
    node.ok("image prune --all --force");
    assert_eq!(node.ok("images --quiet"), "");
    assert!(!node.tared_log().contains("ERROR"), "{}", node.tared_log());
}

/// What docker's newer builder asks for: BuildKit's containerd worker, with its leases, its mounts and its collection.
const STEPS: &str = "\
FROM busybox AS base
RUN echo built > /built && mkdir -p /a/b && touch /a/b/c && busybox ln /built /hard && busybox ln -s /built /soft
FROM base AS other
RUN --mount=type=cache,target=/cache echo x >> /cache/n && wc -l < /cache/n > /count
RUN --mount=type=tmpfs,target=/t touch /t/x
RUN --mount=type=bind,source=f,target=/f cat /f > /copied
RUN --mount=type=secret,id=s wc -c < /run/secrets/s > /length
FROM busybox
COPY --from=base /built /hard /soft /a/ /
COPY --from=other /count /copied /length /
COPY --chown=1:2 f /f
RUN rm /hard && mkdir /made
WORKDIR /made
USER nobody
CMD [\"cat\", \"/built\"]
";

#[test]
fn docker_builds_with_buildkit_whose_snapshots_content_and_leases_are_tareds() {
    let node = Node::start(true);
    node.dockerd.add_buildx().unwrap();
    let (context, secret) = (node.dir.path().join("context"), node.dir.path().join("secret"));
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), STEPS).unwrap();
    std::fs::write(context.join("f"), "data\n").unwrap();
    std::fs::write(&secret, "secret").unwrap();
    let build = |more: &str| {
        let (context, secret) = (context.display(), secret.display());
        node.ok(&format!("buildx build --network none --progress plain --secret id=s,src={secret} {more} {context}"))
    };
    build("--tag built");
    let run = |words: &str| node.ok(&format!("run --rm --network none built {words}"));
    assert_eq!(run(""), "built");
    assert_eq!(run("cat /count /copied /length /soft"), "1\ndata\n6\nbuilt");
    assert_eq!(run("busybox stat -c %u:%g /f"), "1:2");
    assert_eq!(run("ls / -d /made /b/c").lines().count(), 3);
    assert!(build("--tag again").matches("CACHED").count() >= 8, "nothing has to be made twice");
    let files = node.dir.path().join("files");
    build(&format!("--output type=local,dest={}", files.display()));
    assert_eq!(std::fs::read_to_string(files.join("copied")).unwrap(), "data\n");
    let archive = node.dir.path().join("archive.tar");
    build(&format!("--output type=docker,dest={}", archive.display()));
    node.ok(&format!("load --input {}", archive.display()));
    node.ok("buildx prune --all --force");
    node.ok("image rm --force built again");
    node.ok("system prune --all --force");
    assert!(!node.tared_log().contains("ERROR"), "{}", node.tared_log());
}

/// Each step is a container, and a layer.
fn a_build(node: &Node) {
    let context = node.dir.path().join("context");
    std::fs::create_dir(&context).unwrap();
    let steps = "FROM busybox\nRUN echo built > /built\nCMD [\"cat\", \"/built\"]\n";
    std::fs::write(context.join("Dockerfile"), steps).unwrap();
    node.ok(&format!("build --network none --tag built {}", context.display()));
    assert_eq!(node.ok("run --rm --network none built"), "built");
}
