//! Images in and out, driven by Debian's own clients: containerd first, as far as it is the peer, and then tared.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::image;
use tare_integration::programs;
use tare_integration::registry::{Door, NAME, PASSWORD, Registry};
use tempfile::TempDir;

/// A daemon and a registry, both gone when dropped.
struct Node {
    daemon: Daemon,
    registry: Registry,
    ctr: &'static str,
    dir: TempDir,
}

impl Node {
    fn start(kind: Kind, ctr: &'static str, door: Door) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-images.").tempdir_in("/var/tmp").unwrap();
        let registry = Registry::behind(door, dir.path()).unwrap();
        let daemon = Daemon::start(kind, dir.path()).unwrap();
        Node { daemon, registry, ctr, dir }
    }

    /// The same, with an image in the registry, pulled.
    fn with_image(kind: Kind, ctr: &'static str) -> (Node, String) {
        let node = Node::start(kind, ctr, Door::Open);
        node.registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let name = node.registry.reference("busybox:latest");
        node.ok(&format!("image pull --plain-http {name}"));
        (node, name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ctr` with arguments split at spaces.
    fn ctr(&self, words: &str) -> Output {
        let mut ctr = self.daemon.ctr(self.ctr).unwrap();
        ctr.args(words.split_whitespace()).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, words: &str) -> String {
        let out = self.ctr(words);
        assert!(out.status.success(), "ctr {words}: {}\n{}\ndaemon:\n{}", out.status, text(&out), self.daemon.log());
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn fails(&self, words: &str) -> String {
        let out = self.ctr(words);
        assert!(!out.status.success(), "ctr {words}: {}", text(&out));
        text(&out)
    }

    /// What a container of an image says.
    fn says(&self, image: &str) -> String {
        self.ok(&format!("run --rm {image} {} echo it works", self.id()))
    }

    /// A name that no other test's container has: runc keeps those of all daemons in one folder.
    fn id(&self) -> String {
        format!("images-{}", self.registry.reference("").trim_end_matches('/').replace(['.', ':'], "-"))
    }

    /// Without this image and what only it needs.
    fn without(&self, image: &str) {
        self.ok(&format!("image rm --sync {image}"));
        assert_eq!(self.ok("content ls -q"), "");
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The same promise, asked of containerd first and of tared with each release's client.
fn everywhere(promise: impl Fn(Kind, &'static str)) {
    for (kind, ctr) in [(Kind::Containerd("newer"), "newer"), (Kind::Tared, "newer"), (Kind::Tared, "bookworm")] {
        eprintln!("{kind:?} driven by ctr of {ctr}");
        promise(kind, ctr);
    }
}

/// Through the daemon's transfer service, and by the client itself where it can do both.
fn ways(ctr: &str) -> &'static [&'static str] {
    if ctr == "newer" { &["", "--local"] } else { &[""] }
}

fn listed(tar: &Path) -> Vec<String> {
    let out = Command::new("tar").arg("-tf").arg(tar).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn what_a_container_changed_is_a_layer() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        let changes = "echo new >/etc/new; rm /etc/group; mkdir /d; chmod 700 /tmp";
        let mut run = node.daemon.ctr(ctr).unwrap();
        let id = node.id();
        let run = run.args(["run", &name, &id, "sh", "-c", changes]).output().unwrap();
        assert!(run.status.success(), "{}", text(&run));
        for (media_type, file) in [("", "gzip"), ("--media-type application/vnd.oci.image.layer.v1.tar", "plain")] {
            let out = node.ctr(&format!("snapshot diff {media_type} {id}"));
            assert!(out.status.success(), "{}\n{}", text(&out), node.daemon.log());
            let layer = node.file(file);
            std::fs::write(&layer, out.stdout).unwrap();
            let listed = listed(&layer);
            for expected in ["etc/new", "etc/.wh.group", "d/", "tmp/"] {
                assert!(listed.iter().any(|entry| entry == expected), "{expected} in {listed:?}");
            }
            assert!(!listed.iter().any(|entry| entry.starts_with("bin")), "{listed:?}");
        }
        // Nobody names the layer any more.
        node.ok(&format!("container rm {id}"));
        node.without(&name);
    });
}

#[test]
fn an_exported_image_comes_back_as_it_was() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        for way in ways(ctr) {
            let content = node.ok("content ls -q");
            let archive = node.file("image.tar");
            node.ok(&format!("image export {way} {} {name}", archive.display()));
            let members = listed(&archive);
            for expected in ["index.json", "manifest.json", "oci-layout"] {
                assert!(members.iter().any(|member| member == expected), "{members:?}");
            }
            node.without(&name);
            node.ok(&format!("image import {way} {}", archive.display()));
            assert_eq!(node.ok("image ls -q").trim(), name);
            let back = node.ok("content ls -q");
            assert!(content.lines().all(|digest| back.contains(digest)), "{content} {back}");
            assert_eq!(node.says(&name), "it works\n");
        }
        // Under another name, and by digest.
        let archive = node.file("image.tar");
        node.ok(&format!("image import --digests --base-name a.example/other {}", archive.display()));
        let names = node.ok("image ls -q");
        assert!(names.contains("a.example/other@sha256:"), "{names}");
    });
}

/// What `docker save` writes: names of layers are folders, and nothing is packed.
#[test]
fn docker_s_archives_are_read() {
    for (kind, ctr) in [(Kind::Containerd("newer"), "newer"), (Kind::Tared, "newer"), (Kind::Tared, "bookworm")] {
        let (node, name) = Node::with_image(kind, ctr);
        let (oci, docker) = (node.file("oci.tar"), node.file("docker.tar"));
        node.ok(&format!("image export {} {name}", oci.display()));
        skopeo(&[
            &format!("oci-archive:{}", oci.display()),
            &format!("docker-archive:{}:b.example/saved:1", docker.display()),
        ]);
        node.without(&name);
        for way in ways(ctr) {
            node.ok(&format!("image import {way} {}", docker.display()));
            assert_eq!(node.ok("image ls -q").trim(), "b.example/saved:1");
            assert_eq!(node.says("b.example/saved:1"), "it works\n");
            node.without("b.example/saved:1");
        }
    }
}

#[test]
fn an_archive_that_is_cut_short_leaves_no_image() {
    for ctr in ["newer", "bookworm"] {
        let (node, name) = Node::with_image(Kind::Tared, ctr);
        let archive = node.file("image.tar");
        node.ok(&format!("image export {} {name}", archive.display()));
        node.without(&name);
        let whole = std::fs::read(&archive).unwrap();
        for cut in [0, 700, whole.len() / 2, whole.len() - 3000] {
            std::fs::write(&archive, &whole[..cut]).unwrap();
            node.fails(&format!("image import {}", archive.display()));
            assert_eq!(node.ok("image ls -q"), "", "cut at {cut}");
        }
    }
}

fn skopeo(places: &[&str]) {
    let mut skopeo = Command::new(programs::peer("images", "skopeo").unwrap());
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]).args(places);
    let out = skopeo.output().unwrap();
    assert!(out.status.success(), "skopeo copy {places:?}: {}", text(&out));
}

#[test]
fn a_pushed_image_can_be_pulled_by_all() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        for (n, way) in ways(ctr).iter().enumerate() {
            let pushed = node.registry.reference(&format!("pushed/here{n}:1"));
            node.ok(&format!("image push {way} --plain-http {pushed} {name}"));
            node.ok(&format!("image push {way} --plain-http {pushed} {name}")); // nothing to do
            skopeo(&[&format!("docker://{pushed}"), &format!("oci:{}:1", node.file(&format!("layout{n}")).display())]);
            node.without(&name);
            node.ok(&format!("image pull {way} --plain-http {pushed}"));
            assert_eq!(node.says(&pushed), "it works\n");
            node.without(&pushed);
            node.ok(&format!("image pull {way} --plain-http {name}"));
        }
    });
}

/// umoci reads what was pushed, through skopeo: an OCI layout's layers unpack to the same files.
#[test]
fn umoci_unpacks_what_was_exported() {
    let (node, name) = Node::with_image(Kind::Tared, "newer");
    let archive = node.file("image.tar");
    node.ok(&format!("image export {} {name}", archive.display()));
    let (layout, bundle) = (node.file("layout"), node.file("bundle"));
    skopeo(&[&format!("oci-archive:{}", archive.display()), &format!("oci:{}:1", layout.display())]);
    let out = Command::new(programs::peer("images", "umoci").unwrap())
        .args(["unpack", "--image"])
        .arg(format!("{}:1", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(bundle.join("rootfs/bin/busybox").exists());
}

#[test]
fn a_locked_registry_wants_a_name_and_a_password() {
    everywhere(|kind, ctr| {
        let node = Node::start(kind, ctr, Door::Locked);
        let (from, to) = (Registry::start(node.dir.path()).unwrap(), node.registry.reference("busybox:1"));
        from.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let open = from.reference("busybox:latest");
        node.ok(&format!("image pull --plain-http {open}"));
        for way in ways(ctr) {
            node.fails(&format!("image push {way} --plain-http {to} {open}"));
            node.ok(&format!("image push {way} --plain-http --user {NAME}:{PASSWORD} {to} {open}"));
            let said = node.fails(&format!("image pull {way} --plain-http --user {NAME}:wrong {to}"));
            assert!(!said.contains("wrong"), "{said}");
            node.fails(&format!("image pull {way} --plain-http {to}"));
            node.ok(&format!("image pull {way} --plain-http --user {NAME}:{PASSWORD} {to}"));
            assert_eq!(node.says(&to), "it works\n");
            node.ok(&format!("image rm --sync {to}"));
        }
    });
}

#[test]
fn a_registry_s_certificate_is_trusted_only_if_it_is_named() {
    everywhere(|kind, ctr| {
        let node = Node::start(kind, ctr, Door::Secure);
        let (from, to) = (Registry::start(node.dir.path()).unwrap(), node.registry.reference("busybox:1"));
        from.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let open = from.reference("busybox:latest");
        node.ok(&format!("image pull --plain-http {open}"));
        let hosts = node.file("hosts");
        let host = to.split('/').next().unwrap();
        std::fs::create_dir_all(hosts.join(host)).unwrap();
        let write = |more: &str| {
            let text = format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\n{more}\n");
            std::fs::write(hosts.join(host).join("hosts.toml"), text).unwrap();
        };
        let ask = format!("--user {NAME}:{PASSWORD} --hosts-dir {}", hosts.display());
        for way in ways(ctr) {
            write("");
            let said = node.fails(&format!("image push {way} {ask} {to} {open}"));
            assert!(said.contains("certificate"), "{said}");
            write(&format!("ca = \"{}\"", node.registry.certificate().display()));
            node.ok(&format!("image push {way} {ask} {to} {open}"));
            node.ok(&format!("image pull {way} {ask} {to}"));
            write("skip_verify = true");
            node.ok(&format!("image rm --sync {to}"));
            node.ok(&format!("image pull {way} {ask} {to}"));
            assert_eq!(node.says(&to), "it works\n");
            node.ok(&format!("image rm --sync {to}"));
        }
    });
}

#[test]
fn an_image_is_tagged_checked_measured_converted_and_looked_into() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        node.ok(&format!("image tag {name} c.example/again:1"));
        assert_eq!(node.says("c.example/again:1"), "it works\n");
        let checked = node.ok(&format!("image check name=={name}"));
        assert!(checked.contains("complete (") && checked.contains("true"), "{checked}");
        if ctr == "newer" {
            let usage = node.ok(&format!("image usage {name}"));
            assert!(usage.contains("MiB") || usage.contains("KiB"), "{usage}");
        }
        node.ok(&format!("image convert --uncompress {name} c.example/plain:1"));
        assert_eq!(node.says("c.example/plain:1"), "it works\n");
        let place = node.file("mounted");
        std::fs::create_dir(&place).unwrap();
        node.ok(&format!("image mount {name} {}", place.display()));
        let there = place.join("bin/busybox").exists();
        node.ok(&format!("image unmount --rm {}", place.display()));
        assert!(there, "nothing was mounted");
        node.ok(&format!("image label {name} key=value"));
        assert!(node.ok("image ls").contains("key=value"));
    });
}

/// An image for two platforms: of one only what describes it, of both everything, and pushed whole.
#[test]
fn of_several_platforms_one_or_all_are_taken() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        node.ok(&format!("image rm --sync {name}"));
        let (both, count) = (node.registry.push_for_two("two", "1").unwrap(), |words: &str| {
            node.ok(words);
            let count = node.ok("content ls -q").lines().count();
            node.ok(&format!("image rm --sync {}", node.registry.reference("two:1")));
            count
        });
        // Of an index, one image; and what describes the other, which newer clients take unless they are told not to.
        let (less, more) = if ctr == "newer" { ("--skip-metadata", "") } else { ("", "--all-metadata") };
        for way in ways(ctr) {
            assert_eq!(count(&format!("image pull {way} --plain-http {less} {both}")), 4, "{way}");
            assert_eq!(count(&format!("image pull {way} --plain-http {more} {both}")), 6, "{way}");
        }
        node.ok(&format!("image pull --plain-http --all-platforms {both}"));
        let copy = node.registry.reference("copy:1");
        node.ok(&format!("image push --plain-http {copy} {both}"));
        node.ok(&format!("image pull --plain-http {copy}"));
        assert_eq!(node.says(&copy), "it works\n");
    });
}

#[test]
fn an_image_is_unpacked_to_the_snapshotter_that_is_asked_for() {
    everywhere(|kind, ctr| {
        let (node, name) = Node::with_image(kind, ctr);
        node.without(&name);
        // containerd's transfer service unpacks to what its configuration names, and says nothing of the rest.
        let ways = if kind == Kind::Tared { ways(ctr) } else { &["--local"] };
        for way in ways {
            node.ok(&format!("image pull {way} --plain-http --snapshotter native {name}"));
            assert!(node.ok("snapshot --snapshotter native ls").contains("Committed"));
            assert!(!node.ok("snapshot ls").contains("Committed"));
            assert_eq!(
                node.ok(&format!("run --rm --snapshotter native {name} {} echo it works", node.id())),
                "it works\n"
            );
            node.without(&name);
        }
    });
}

/// A registry behind a door that can be closed in the middle of an answer.
struct Gate {
    port: u16,
    /// Bytes that may still pass to the client.
    left: Arc<(Mutex<usize>, Condvar)>,
    /// Whether somebody waits for more.
    stuck: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    fn before(registry: &Registry) -> Gate {
        let to = registry.reference("").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            left: Arc::new((Mutex::new(usize::MAX), Condvar::new())),
            stuck: Arc::default(),
        };
        let (left, stuck) = (gate.left.clone(), gate.stuck.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&to).unwrap();
                let (mut asking, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut asking, &mut asked));
                let (left, stuck) = (left.clone(), stuck.clone());
                std::thread::spawn(move || pass(server, client, &left, &stuck));
            }
        });
        gate
    }

    fn close_after(&self, bytes: usize) {
        *self.left.0.lock().unwrap() = bytes;
    }

    fn open(&self) {
        *self.left.0.lock().unwrap() = usize::MAX;
        self.left.1.notify_all();
    }

    fn wait_until_closed(&self) {
        let stuck = self.stuck.0.lock().unwrap();
        drop(self.stuck.1.wait_while(stuck, |stuck| !*stuck).unwrap());
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, left: &(Mutex<usize>, Condvar), stuck: &(Mutex<bool>, Condvar)) {
    let mut piece = vec![0; 16 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut piece) else { return };
        let mut may = left.0.lock().unwrap();
        while *may < length {
            *stuck.0.lock().unwrap() = true;
            stuck.1.notify_all();
            may = left.1.wait(may).unwrap();
        }
        *may -= if *may == usize::MAX { 0 } else { length };
        drop(may);
        if to.write_all(&piece[..length]).is_err() {
            return;
        }
    }
}

/// A layer that does not compress.
fn noise(megabytes: usize) -> image::Image {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(megabytes << 20);
    while bytes.len() < megabytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    let mut layer = image::Layer::default();
    layer.file("noise", 0o644, &bytes).unwrap();
    image::Image::of(vec![layer], &serde_json::json!({})).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_daemon_that_was_killed_while_it_pulled_pulls_again_and_leaves_nothing() {
    for (ctr, way) in [("newer", ""), ("bookworm", "")] {
        let mut node = Node::start(Kind::Tared, ctr, Door::Open);
        node.registry.push("noise", "1", &noise(4)).unwrap();
        let gate = Gate::before(&node.registry);
        let name = format!("127.0.0.1:{}/noise:1", gate.port);
        gate.close_after(2 << 20);
        let mut pull = node.daemon.ctr(ctr).unwrap();
        let words = format!("image pull {way} --plain-http {name}");
        let mut pull = pull.args(words.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        gate.wait_until_closed();
        node.daemon.crash_and_restart().unwrap();
        assert!(!pull.wait().unwrap().success());
        gate.open();
        assert_eq!(node.ok("image ls -q"), "");
        node.ok(&words);
        assert_eq!(node.ok("image ls -q").trim(), name);
        node.ok(&format!("image rm --sync {name}"));
        // What a client asks for it holds by a lease of its own, for a day.
        let leases = node.ok("leases ls -q");
        node.ok(&format!("leases rm --sync {}", leases.split_whitespace().collect::<Vec<_>>().join(" ")));
        assert_eq!(node.ok("content ls -q"), "", "{ctr}");
        assert_eq!(node.ok("leases ls -q"), "", "{ctr}");
        let root = node.dir.path().join("root");
        let limit = Instant::now() + Duration::from_secs(10);
        for folder in ["blobs/sha256", "snapshots/overlayfs"] {
            // Files go a moment after their rows.
            let mut left = files(&root.join(folder));
            while !left.is_empty() && Instant::now() < limit {
                left = files(&root.join(folder));
            }
            assert!(left.is_empty(), "{ctr}: {left:?}");
        }
    }
}

/// Mounted while it lives.
struct Small(PathBuf);

impl Small {
    fn mount(place: &Path, size: &str) -> Small {
        let small = Small(place.to_owned());
        small.run(&["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
        small
    }

    fn run(&self, args: &[&str]) {
        assert!(Command::new("mount").args(args).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_while_an_image_is_pulled_is_told_and_nothing_half_is_left() {
    let dir = tempfile::Builder::new().prefix("tare-images.").tempdir_in("/var/tmp").unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let small = Small::mount(&dir.path().join("root"), "12m");
    let registry = Registry::start(dir.path()).unwrap();
    registry.push("noise", "1", &noise(8)).unwrap();
    let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
    let node = Node { daemon, registry, ctr: "newer", dir };
    let name = node.registry.reference("noise:1");
    let said = node.fails(&format!("image pull --plain-http {name}"));
    assert!(said.contains("no space left on device"), "{said}");
    assert_eq!(node.ok("image ls -q"), "");
    assert_eq!(node.ok("snapshot ls").lines().count(), 1, "only the heading");
    assert_eq!(node.ok("content active").lines().count(), 1, "only the heading");
    small.run(&["-o", "remount,size=64m"]);
    node.ok(&format!("image pull --plain-http {name}"));
    assert_eq!(node.ok("image ls -q").trim(), name);
    drop(node);
    drop(small);
}
