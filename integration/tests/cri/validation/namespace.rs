//! Pods with a network of their own, in the namespaces they ask for.

use tare_proto::runtime::v1 as pb;

use crate::network::{self, own_network};
use crate::node::{Client, Node};

/// Which namespace of a kind a container is in, and the host.
async fn of(node: &mut Client, container: &str, kind: &str) -> (String, String) {
    let inside = node.prints(container, &format!("readlink /proc/self/ns/{kind}")).await;
    let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    (inside.trim().to_owned(), host.display().to_string())
}

/// A pod with these options, and a container in it with the same.
async fn with(node: &mut Node, name: &str, options: &pb::NamespaceOption) -> (String, String) {
    let mut config = own_network(node, name);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options = Some(options.clone());
    if options.network() == pb::NamespaceMode::Node {
        config.hostname = String::new();
    }
    let pod = node.run(config).await;
    let mut config = node.container("main", "sleep 1000");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options.clone());
    let container = node.running(&pod, config).await;
    (pod, container)
}

#[tokio::test]
async fn a_pods_namespaces_are_its_own_or_the_hosts_as_it_asks() {
    use pb::NamespaceMode::{Container, Node as Host, Pod};
    let (mut node, _netns) = network::node().await;
    for (name, network, pid, ipc) in
        [("own", Pod, Pod, Pod), ("pid", Pod, Host, Pod), ("ipc", Pod, Pod, Host), ("net", Host, Pod, Pod)]
    {
        let mut options = pb::NamespaceOption::default();
        options.set_network(network);
        options.set_pid(pid);
        options.set_ipc(ipc);
        let (pod, container) = with(&mut node, name, &options).await;
        for (kind, mode) in [("pid", pid), ("ipc", ipc)] {
            let (inside, host) = of(&mut node, &container, kind).await;
            assert_eq!(inside == host, mode == Host, "{name}: {kind}");
        }
        // The daemon, and with it what it calls the host's network, is in a namespace of the test's.
        let daemon = std::fs::read_link(format!("/proc/{}/ns/net", node.daemon.pid())).unwrap();
        let inside = node.prints(&container, "readlink /proc/self/ns/net").await;
        assert_eq!(inside.trim() == daemon.display().to_string(), network == Host, "{name}: net");
        let shown = node.pod_status(&pod).await.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(shown, options, "{name}");
        node.remove(&pod).await;
    }
    let mut options = pb::NamespaceOption::default();
    options.set_pid(Container);
    let (pod, container) = with(&mut node, "container", &options).await;
    assert!(node.prints(&container, "cat /proc/1/cmdline").await.contains("sleep\x001000"));
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn containers_of_a_pod_share_its_address_and_a_port_without_a_host_port_is_no_mapping() {
    let (mut node, netns) = network::node().await;
    let mut config = own_network(&node, "web");
    config.port_mappings = vec![pb::PortMapping { container_port: 80, ..Default::default() }];
    config.linux.as_mut().unwrap().sysctls = [("fs.mqueue.msg_max".into(), "100".into())].into();
    let pod = node.run(config).await;
    let serving = "mkdir /tmp/w; echo main page > /tmp/w/index.html; busybox httpd -f -p 80 -h /tmp/w";
    let config = node.container("httpd", serving);
    let server = node.running(&pod, config).await;
    let config = node.container("busybox", "sleep 1000");
    let client = node.running(&pod, config).await;
    let ip = node.pod_status(&pod).await.network.unwrap().ip;
    let ask = format!("until busybox wget -q -O - http://{ip}/ 2>/dev/null; do sleep 0.05; done");
    assert_eq!(node.prints(&client, &ask).await, "main page\n");
    assert_eq!(netns.runs(&ask), "main page\n");
    assert_eq!(node.prints(&server, "cat /proc/sys/fs/mqueue/msg_max").await, "100\n");
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn a_user_namespace_that_cannot_be_is_refused() {
    let mut node = Node::start().await;
    let mapping = |container_id, host_id| pb::IdMapping { container_id, host_id, length: 100_000 };
    let options = |mode: pb::NamespaceMode, ids: &[pb::IdMapping]| pb::UserNamespace {
        mode: mode.into(),
        uids: ids.to_vec(),
        gids: ids.to_vec(),
    };
    for (what, users) in [
        ("two mappings", options(pb::NamespaceMode::Pod, &[mapping(0, 1000), mapping(0, 2000)])),
        ("no root", options(pb::NamespaceMode::Pod, &[mapping(1, 1000)])),
        ("mode CONTAINER", options(pb::NamespaceMode::Container, &[])),
        ("mode TARGET", options(pb::NamespaceMode::Target, &[])),
    ] {
        let mut config = node.pod("users");
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options =
            Some(pb::NamespaceOption { userns_options: Some(users), ..pb::NamespaceOption::default() });
        let request = pb::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        assert!(node.client.run_pod_sandbox(request).await.is_err(), "{what}");
    }
    assert!(node.pods().await.is_empty());
    node.end();
}
