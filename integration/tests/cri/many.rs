//! Many pods, and a daemon that is killed while it makes and ends them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::network::{self, Netns, own_network, reserved};
use crate::node::Node;

#[tokio::test]
async fn pods_come_and_go_side_by_side_and_leave_nothing() {
    const PODS: usize = 12;
    let mut node = Node::start().await;
    let mut running = tokio::task::JoinSet::new();
    for n in 0..PODS {
        let (mut node, config) = (node.share(), node.pod(&format!("p{n}")));
        running.spawn(async move {
            let pod = node.run(config).await;
            let config = node.container("main", "echo here; while :; do sleep 1; done");
            let id = node.running(&pod, config).await;
            assert_eq!(node.prints(&id, "echo inside").await, "inside\n");
            pod
        });
    }
    let pods = running.join_all().await;
    assert_eq!(node.pods().await.len(), PODS);
    let mut ending = tokio::task::JoinSet::new();
    for pod in pods {
        let mut node = node.share();
        ending.spawn(async move { node.remove(&pod).await });
    }
    ending.join_all().await;
    assert!(node.pods().await.is_empty());
    node.end();
}

/// Pods with addresses of their own come and go; each with what it had.
async fn round(node: &mut Node, pods: usize) {
    let mut lives = tokio::task::JoinSet::new();
    for n in 0..pods {
        let (mut one, config) = (node.share(), own_network(node, &format!("p{n}")));
        lives.spawn(async move {
            let pod = one.run(config).await;
            let config = one.container("main", "while :; do sleep 1; done");
            let id = one.running(&pod, config).await;
            assert_eq!(one.prints(&id, "echo inside").await, "inside\n");
            one.stop(&pod).await;
            one.remove(&pod).await;
        });
    }
    lives.join_all().await;
}

/// Waits until nothing of any pod's network is left.
async fn given_back(node: &Node, netns: &Netns) {
    let left = || (reserved(node), netns.ports(), entries(&node.dir.path().join("root/cni")));
    let limit = Instant::now() + Duration::from_secs(20);
    while left() != (0, String::new(), 0) {
        assert!(Instant::now() < limit, "{:?}\n{}", left(), node.daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn rounds_of_pods_leave_the_daemon_and_the_machine_as_the_first_one_did() {
    const PODS: usize = 6;
    const ROUNDS: usize = 4;
    let (mut node, netns) = network::node().await;
    let open = |node: &Node| entries(Path::new(&format!("/proc/{}/fd", node.daemon.pid())));
    let resident = |node: &Node| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    round(&mut node, PODS).await;
    given_back(&node, &netns).await;
    let (descriptors, memory) = (open(&node), resident(&node));
    for _ in 1..ROUNDS {
        round(&mut node, PODS).await;
    }
    given_back(&node, &netns).await;
    let limit = Instant::now() + Duration::from_secs(20);
    while open(&node) > descriptors {
        assert!(Instant::now() < limit, "{} descriptors instead of {descriptors}", open(&node));
        tokio::time::sleep(Duration::from_millis(5)).await; // a connection to a shim is closed a moment after its end
    }
    assert!(resident(&node) < memory + (16 << 10), "{} KiB resident instead of {memory}", resident(&node));
    node.end();
}

/// Whatever the moment, the next daemon either knows nothing of what was begun or can be told to remove it.
#[tokio::test]
async fn a_daemon_that_is_killed_while_it_works_leaves_nothing_that_cannot_be_removed() {
    let mut node = Node::start().await;
    for moment in [5, 15, 30, 60, 90, 130, 200, 300] {
        let (mut other, config) = (node.share(), node.pod(&format!("at{moment}")));
        let work = tokio::spawn(async move {
            let request = tare_proto::runtime::v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
            let Ok(answer) = other.client.run_pod_sandbox(request).await else { return };
            let pod = answer.into_inner().pod_sandbox_id;
            let config = other.container("main", "while :; do sleep 1; done");
            let Ok(id) = other.create(&pod, config).await else { return };
            let start = tare_proto::runtime::v1::StartContainerRequest { container_id: id };
            if other.client.start_container(start).await.is_err() {
                return;
            }
            let stop = tare_proto::runtime::v1::StopPodSandboxRequest { pod_sandbox_id: pod };
            let _ = other.client.stop_pod_sandbox(stop).await; // the daemon may be killed in the middle of it
        });
        tokio::time::sleep(Duration::from_millis(moment)).await;
        node.crash_and_restart().await;
        work.await.unwrap();
        for pod in node.pods().await {
            node.stop(&pod.id).await;
            node.remove(&pod.id).await;
        }
        assert!(node.containers(Default::default()).await.is_empty(), "killed after {moment} ms");
    }
    node.end();
}
