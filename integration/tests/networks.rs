//! Networks of `tarectl`, with Debian's CNI plugins, in a network namespace that stands for a machine.

use std::io::Read as _;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, programs, registry::Registry};
use tempfile::TempDir;

/// The namespace that this thread, and what it starts, lives in from now on; gone with the last of them.
struct Machine(Child);

impl Machine {
    fn enter() -> Machine {
        let script = "ip link set lo up && echo . && exec sleep infinity";
        let mut command = Command::new("unshare");
        let mut holder = command.args(["--net", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        holder.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        Machine(holder)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Node {
    daemon: Daemon,
    registry: Registry,
    _dir: TempDir,
    _machine: Machine,
}

impl Drop for Node {
    /// What a test that failed left running.
    fn drop(&mut self) {
        self.daemon.remove_containers();
    }
}

impl Node {
    fn start() -> Node {
        let machine = Machine::enter();
        let dir = tempfile::Builder::new().prefix("tare-net.").tempdir().unwrap();
        let plugins: PathBuf =
            programs::peer("network", "nft").unwrap().ancestors().nth(3).unwrap().join("usr/lib/cni");
        let config =
            format!("[cri.cni]\nbin_dirs = ['{}']\nconf_dir = '{}/net.d'\n", plugins.display(), dir.path().display());
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
        Node { daemon, registry, _dir: dir, _machine: machine }
    }

    fn output(&self, args: &[&str]) -> Output {
        self.daemon.tarectl().unwrap().args(args).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "tarectl {args:?}: {}\n{said}\n{}", out.status, self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(!out.status.success(), "tarectl {args:?} should be refused");
        String::from_utf8(out.stderr).unwrap()
    }
}

/// What a server says to a client of this machine; it may still be starting.
fn heard(address: &str) -> String {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let mut text = String::new();
        match TcpStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut text)) {
            Ok(_) if !text.is_empty() => return text,
            outcome => assert!(Instant::now() < limit, "{address}: {outcome:?}"),
        }
        std::thread::yield_now();
    }
}

const SERVER: &str = "while :; do echo hello | nc -l -p 80; done";

fn bridges() -> usize {
    let links = Command::new("ip").args(["-o", "link", "show", "type", "bridge"]).output().unwrap();
    String::from_utf8(links.stdout).unwrap().lines().filter(|line| line.contains(" tare-")).count()
}

#[test]
fn containers_reach_each_other_and_are_reached_through_ports_of_the_machine() {
    let mut node = Node::start();
    let image = node.registry.reference("busybox");
    assert_eq!(node.ok(&["net", "create", "backend"]), "backend\n");
    assert!(node.refused(&["net", "create", "backend"]).contains("already exists"));
    let server = ["sh", "-c", SERVER];
    let run = |flags: &[&str]| node.ok(&[&["run", "-d"], flags, &[&image], &server[..]].concat());
    run(&["--net", "backend", "--name", "db", "--network-alias", "sql", "-p", "8080:80"]);
    assert!(node.ok(&["ps"]).contains("0.0.0.0:8080->80/tcp"));
    // By name, from a neighbour that came later.
    let ask = "nc $(awk '/sql/ {print $1}' /etc/hosts) 80 </dev/null";
    let mut answer = String::new();
    let limit = Instant::now() + Duration::from_secs(20);
    while answer != "hello\n" {
        assert!(Instant::now() < limit, "no answer: {answer}");
        let out = node.output(&["run", "--rm", "--net", "backend", &image, "sh", "-c", ask]);
        answer = String::from_utf8(out.stdout).unwrap();
    }
    // By a port, from the machine: it has an address on the bridge.
    let address = node.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db"]);
    let (net, _) = address.trim().rsplit_once('.').unwrap();
    let machine = format!("{net}.1:8080");
    assert_eq!(heard(&machine), "hello\n");
    assert!(
        node.refused(&["run", "-d", "--net", "backend", "-p", "8080:80", &image, "true"]).contains("already allocated")
    );
    assert!(node.refused(&["net", "rm", "backend"]).contains("is used by container default/db"));
    // A daemon that is killed changes nothing, and a container that is started again keeps its place.
    node.daemon.crash_and_restart().unwrap();
    assert_eq!(heard(&machine), "hello\n");
    node.ok(&["restart", "-t", "0", "db"]);
    assert_eq!(heard(&machine), "hello\n");
    node.ok(&["rm", "-f", "db"]);
    assert_eq!(node.ok(&["net", "rm", "backend"]), "backend\n");
    assert_eq!((bridges(), node.ok(&["net", "ls", "-q"]).as_str()), (0, "host\nnone\n"));
    assert!(TcpStream::connect(&machine).is_err());
}

#[test]
fn a_container_has_the_names_and_name_servers_that_were_asked_for() {
    let node = Node::start();
    let image = node.registry.reference("busybox");
    let flags = ["--dns", "9.9.9.9", "--dns-search", "example", "--add-host", "mine:1.2.3.4", "--hostname", "box"];
    let show = "cat /etc/resolv.conf; grep -c 1.2.3.4.mine /etc/hosts; cat /etc/hostname; ls /sys/class/net";
    let out = node.ok(&[&["run", "--rm"], &flags[..], &[&image, "sh", "-c", show]].concat());
    assert_eq!(out, "nameserver 9.9.9.9\nsearch example\n1\nbox\neth0\nlo\n", "on the default network");
    let alone = node.ok(&["run", "--rm", "--net", "none", &image, "ls", "/sys/class/net"]);
    assert_eq!(alone, "lo\n");
    node.ok(&["run", "-d", "--name", "first", &image, "sleep", "1000"]);
    let of = |name: &str| node.ok(&["exec", name, "readlink", "/proc/self/ns/net"]);
    node.ok(&["run", "-d", "--name", "second", "--net", "container:first", &image, "sleep", "1000"]);
    assert_eq!(of("first"), of("second"));
    assert!(node.refused(&["run", "--net", "nowhere", &image]).contains("network nowhere: not found"));
    node.ok(&["rm", "-f", "first", "second"]);
}
