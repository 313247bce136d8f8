//! Pods' networks with Debian's CNI plugins, and the kubelet's own client code, in Go, against all of it: each test in a
//! network namespace of its own, so that bridges and rules are nobody else's.

#![allow(unsafe_code)] // unshare(2)

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, programs, registry::Registry};
use tare_proto::runtime::v1 as pb;

use crate::node::Node;

/// Moves this test, and all that it starts from now on, into a new network.
fn alone() {
    // SAFETY: NEWNET alone; file descriptors stay shared, and this thread has no socket yet.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

/// A configuration with a bridge and host ports, its files below `dir`.
fn configure(dir: &Path) -> String {
    let networks = dir.join("net.d");
    std::fs::create_dir_all(&networks).unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [
        {
            "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
            "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": dir.join("ipam"),
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
    ]});
    std::fs::write(networks.join("10-pods.conflist"), list.to_string()).unwrap();
    let plugins = plugins();
    format!("[cri.cni]\nconf_dir = {networks:?}\nbin_dirs = [{plugins:?}]\n")
}

fn plugins() -> PathBuf {
    let nft = programs::peer("network", "nft").unwrap();
    nft.parent().unwrap().parent().unwrap().join("lib/cni")
}

/// Addresses that are reserved: files named as they are.
fn reserved(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("ipam/pods")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("10.") || name.starts_with("fd77"));
    names
}

/// A pod's configuration with a network of its own.
fn networked(node: &Node, name: &str) -> pb::PodSandboxConfig {
    let mut config = node.pod(name);
    config.linux.as_mut().unwrap().security_context = None;
    config
}

#[tokio::test]
async fn pods_have_addresses_reach_each_other_and_give_them_back() {
    alone();
    let place = tempfile::tempdir().unwrap();
    let mut node = Node::with(&configure(place.path())).await;
    let mut server = networked(&node, "server");
    server.port_mappings = vec![pb::PortMapping { container_port: 80, host_port: 8088, ..pb::PortMapping::default() }];
    let server = node.run(server).await;
    let client_pod = networked(&node, "client");
    let client = node.run(client_pod).await;
    let network = node.pod_status(&server).await.network.unwrap();
    assert!(network.ip.starts_with("10.77.0."), "{network:?}");
    assert!(network.additional_ips[0].ip.starts_with("fd77:"), "{network:?}");
    assert_eq!(reserved(place.path()).len(), 4);

    let answers = "while true; do echo hello | nc -l -p 80; done";
    let serving = node.container("serving", answers);
    let serving = node.running(&server, serving).await;
    let asking = node.container("asking", "sleep 1000");
    let asking = node.running(&client, asking).await;
    // nc ends when the server has spoken; it may not listen yet.
    let ask = format!("until nc {} 80 </dev/null; do sleep 0.05; done", network.ip);
    assert_eq!(node.exec(&asking, &ask, 10).await.unwrap().stdout, b"hello\n");
    // The host's port leads there, too, from the host itself.
    let host = Command::new(programs::peer("bookworm", "busybox").unwrap())
        .args(["sh", "-c", "until busybox nc 127.0.0.1 8088 </dev/null; do sleep 0.05; done"])
        .env("PATH", programs::peer("bookworm", "busybox").unwrap().parent().unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&host.stdout), "hello\n", "{}", node.daemon.log());

    // What a daemon that was killed has attached is detached by the next one, also when its namespace is gone.
    node.crash_and_restart().await;
    for container in [&serving, &asking] {
        node.stop_container(container, 0).await;
        node.remove_container(container).await;
    }
    for pod in [&server, &client] {
        node.stop(pod).await;
        node.remove(pod).await;
    }
    assert_eq!(reserved(place.path()), Vec::<String>::new());
    node.end();
}

#[test]
fn the_kubelets_own_client_finds_all_it_needs() {
    alone();
    let dir = tempfile::Builder::new().prefix("tare-kubelet.").tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), configure(dir.path())).unwrap();
    let registry = Registry::start(dir.path()).unwrap();
    registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
    let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
    let logs = dir.path().join("logs").join(dir.path().file_name().unwrap());
    std::fs::create_dir_all(&logs).unwrap();
    let said = Command::new(programs::peer("kubelet", "kubelet").unwrap())
        .arg(daemon.socket())
        .arg(registry.reference("busybox:latest"))
        .arg(&logs)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && stdout.ends_with("done\n"), "{stdout}{stderr}\n{}", daemon.log());
    assert_eq!(reserved(dir.path()), Vec::<String>::new());
}
