//! A daemon that is killed, and what the next one makes of what it finds.

use tare_proto::runtime::v1 as pb;

use crate::node::Node;

#[tokio::test]
async fn containers_run_on_while_the_daemon_is_dead_and_exits_that_it_missed_are_known_after() {
    let mut node = Node::start().await;
    let pod = node.pod("web");
    let pod = node.run(pod).await;
    let (stays, leaves, waits) = (
        node.container("stays", "while :; do sleep 0.05; done"),
        node.container("leaves", "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5"),
        node.container("waits", "true"),
    );
    let stays = node.running(&pod, stays).await;
    let leaves = node.running(&pod, leaves).await;
    let waits = node.create(&pod, waits).await.unwrap();
    let before = node.status(&stays).await;
    node.exec(&leaves, "(sleep 0.3; touch /tmp/go) >/dev/null 2>&1 &", 10).await.unwrap();
    node.crash_and_restart().await;
    assert_eq!(node.pod_status(&pod).await.state(), pb::PodSandboxState::SandboxReady);
    assert_eq!(node.status(&stays).await, before);
    assert_eq!(node.prints(&stays, "echo alive").await, "alive\n");
    assert_eq!(node.ended(&leaves).await.exit_code, 5);
    node.start_container(&waits).await;
    assert_eq!(node.ended(&waits).await.reason, "Completed");
    node.crash_and_restart().await;
    assert_eq!(node.containers(pb::ContainerFilter::default()).await.len(), 3);
    node.stop(&pod).await;
    assert_eq!(node.ended(&stays).await.exit_code, 137);
    node.crash_and_restart().await;
    assert_eq!(node.pod_status(&pod).await.state(), pb::PodSandboxState::SandboxNotready);
    node.remove(&pod).await;
    assert!(node.containers(pb::ContainerFilter::default()).await.is_empty());
    node.end();
}
