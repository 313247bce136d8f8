//! Pods with a network of their own, by Debian's plugins.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use tare_integration::programs;
use tare_proto::runtime::v1 as pb;

use crate::node::Node;

/// The test's own network namespace, in which the daemon's end of every pod's network lies.
pub struct Netns(String);

impl Netns {
    fn make() -> Netns {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tare-cri-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        for words in [["netns", "add", &name].as_slice(), &["-n", &name, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
        }
        Netns(name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn network(dir: &Path, plugin: &str) -> String {
    json!({
        "cniVersion": "1.0.0", "name": "cri-test",
        "plugins": [{"type": plugin, "bridge": "tare-cri0", "isGateway": true, "ipam": {
            "type": "host-local", "dataDir": dir.join("ipam"), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.233.7.0/24"}], [{"subnet": "fd00:7::/64"}]],
        }}],
    })
    .to_string()
}

pub async fn node() -> (Node, Netns) {
    let (dir, netns) = (tempfile::Builder::new().prefix("tare-cri.").tempdir().unwrap(), Netns::make());
    // Whoever is root in a pod only must reach its root file system.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::write(dir.path().join("netns"), &netns.0).unwrap();
    let networks = dir.path().join("net.d");
    std::fs::create_dir(&networks).unwrap();
    std::fs::write(networks.join("1.conflist"), network(dir.path(), "bridge")).unwrap();
    let plugins = programs::peer("network", "bridge").unwrap();
    let config = format!(
        "[cri.cni]\nconf_dir = '{}'\nbin_dirs = ['{}']\n",
        networks.display(),
        plugins.parent().unwrap().display()
    );
    (Node::at(dir, &config).await, netns)
}

impl Netns {
    /// What a command prints there.
    pub fn runs(&self, command: &str) -> String {
        let busybox = programs::peer("bookworm", "busybox").unwrap();
        let script = format!("PATH={}; {command}", busybox.parent().unwrap().display());
        let shell = ["netns", "exec", &self.0, &busybox.display().to_string(), "sh", "-c", &script];
        let out = Command::new("ip").args(shell).output().unwrap();
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Pods' ends on the bridge.
    pub fn ports(&self) -> String {
        let out = Command::new("ip").args(["-n", &self.0, "-o", "link", "show", "type", "veth"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }
}

/// What the IPAM plugin still holds for somebody.
pub fn reserved(node: &Node) -> usize {
    let entries = std::fs::read_dir(node.dir.path().join("ipam/cri-test")).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            !matches!(&*entry.file_name().to_string_lossy(), "lock" | "last_reserved_ip.0" | "last_reserved_ip.1")
        })
        .count()
}

pub fn own_network(node: &Node, name: &str) -> pb::PodSandboxConfig {
    let mut config = node.pod(name);
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().namespace_options = Some(pb::NamespaceOption::default());
    config.hostname = format!("{name}-host");
    config
}

#[tokio::test]
async fn a_pod_has_addresses_a_name_and_name_servers_of_its_own_and_gives_them_back() {
    let (mut node, _netns) = node().await;
    let mut config = own_network(&node, "web");
    config.dns_config = Some(pb::DnsConfig {
        servers: vec!["10.10.10.10".into()],
        searches: vec!["google.com".into()],
        options: vec!["ndots:8".into()],
    });
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls =
        HashMap::from([("net.ipv4.ip_forward".into(), "1".into()), ("kernel.shm_rmid_forced".into(), "1".into())]);
    let pod = node.run(config).await;
    let network = node.pod_status(&pod).await.network.unwrap();
    assert!(network.ip.starts_with("10.233.7."), "{network:?}");
    assert!(network.additional_ips[0].ip.starts_with("fd00:7:"), "{network:?}");
    let config = node.container("main", "while :; do sleep 0.05; done");
    let id = node.running(&pod, config).await;
    assert_eq!(node.prints(&id, "hostname; cat /etc/hostname").await, "web-host\nweb-host\n");
    let names = "search google.com\nnameserver 10.10.10.10\noptions ndots:8\n";
    assert_eq!(node.prints(&id, "cat /etc/resolv.conf").await, names);
    let interfaces = node.prints(&id, "cat /proc/net/dev").await;
    assert!(interfaces.contains("eth0:") && interfaces.contains("lo:"), "{interfaces}");
    let sysctls = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start";
    assert_eq!(node.prints(&id, sysctls).await, "1\n1\n0\n");
    assert_eq!(
        node.prints(&id, "touch /dev/shm/x; sed -n 's/.* \\/dev\\/shm //p' /proc/mounts | cut -c1-5").await,
        "tmpfs\n"
    );
    let stats = pb::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let linux = node.client.pod_sandbox_stats(stats).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    node.crash_and_restart().await;
    assert_eq!(node.pod_status(&pod).await.network.unwrap(), network);
    node.stop(&pod).await;
    assert_eq!(node.pod_status(&pod).await.network.unwrap().ip, "");
    assert_eq!(reserved(&node), 0);
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn a_pod_with_ids_of_its_own_has_them_and_its_network() {
    let (mut node, _netns) = node().await;
    let mut config = own_network(&node, "mapped");
    let ids = vec![pb::IdMapping { host_id: 1_000_000, container_id: 0, length: 65536 }];
    let users = pb::UserNamespace { mode: pb::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids.clone() };
    let options = pb::NamespaceOption { userns_options: Some(users), ..Default::default() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options.clone());
    let pod = node.run(config).await;
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let answer = node.client.pod_sandbox_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", info["pid"])).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"]);
    assert_eq!(reserved(&node), 2);
    let volume = node.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mut config = node.container("main", "id -u > /dev/stdout; while :; do sleep 0.05; done");
    config.log_path = "main.log".into();
    config.mounts = vec![pb::Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..Default::default()
    }];
    for (target, name) in [("/one", node.image.clone()), ("/two", node.two.clone())] {
        let image = Some(pb::ImageSpec { image: name, ..Default::default() });
        config.mounts.push(pb::Mount { container_path: target.into(), image, readonly: true, ..Default::default() });
    }
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options.clone());
    let id = node.running(&pod, config.clone()).await;
    assert_eq!(node.prints(&id, "tr -s ' ' < /proc/self/gid_map").await, " 0 1000000 65536\n");
    let owners = "stat -c %u:%g / /bin/sh /etc/hostname /volume /dev/null; ls /sys/class/net | head -1";
    assert_eq!(node.prints(&id, owners).await, "0:0\n0:0\n0:0\n0:0\n65534:65534\neth0\n");
    let images = "cat /two/low /two/top; stat -c %u /one/bin/sh /two/low";
    assert_eq!(node.prints(&id, images).await, "low\ntop\n0\n0\n");
    assert_eq!(node.prints(&id, "touch /new /bin/sh /volume/new && chown 5:6 /new && stat -c %u /new").await, "5\n");
    assert_eq!(std::fs::metadata(volume.join("new")).unwrap().uid(), 0);
    let status = node.status(&id).await;
    let pid = node.pid(&id).await;
    assert_eq!(std::fs::metadata(format!("/proc/{pid}/root/new")).unwrap().uid(), 1_000_005);
    assert!(std::fs::read_to_string(status.log_path).unwrap().ends_with("stdout F 0\n"));
    config.metadata.as_mut().unwrap().attempt = 1;
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let users = security.namespace_options.as_mut().unwrap().userns_options.as_mut().unwrap();
    users.uids[0].host_id += 1;
    let refused = node.create(&pod, config).await.unwrap_err();
    assert!(refused.message().contains("is different from container"), "{refused}");
    node.remove(&pod).await;
    assert_eq!(reserved(&node), 0);
    node.end();
}

#[tokio::test]
async fn a_network_that_cannot_be_had_leaves_no_pod_and_is_said_by_the_status() {
    let (mut node, _netns) = node().await;
    let conf = node.dir.path().join("net.d/1.conflist");
    std::fs::write(&conf, network(node.dir.path(), "no-such-plugin")).unwrap();
    let config = own_network(&node, "web");
    let request = pb::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let refused = node.client.run_pod_sandbox(request).await.unwrap_err();
    assert!(refused.message().contains("no-such-plugin"), "{refused}");
    let status = node.client.status(pb::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let ready: Vec<(&str, bool)> = conditions.iter().map(|one| (one.r#type.as_str(), one.status)).collect();
    assert_eq!(ready, [("RuntimeReady", true), ("NetworkReady", false)]);
    assert!(node.pods().await.is_empty());
    node.end();
}
