//! Containers.

use tare_proto::runtime::v1 as pb;
use tonic::Code;

use crate::node::Node;

#[tokio::test]
async fn a_container_runs_is_looked_into_stopped_and_removed_and_leaves_nothing() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let config = node.container("main", "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done");
    let id = node.create(&pod, config.clone()).await.unwrap();
    assert_eq!(node.create(&pod, config).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(node.status(&id).await.state(), pb::ContainerState::ContainerCreated);
    node.start_container(&id).await;
    let status = node.status(&id).await;
    assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    assert_eq!(status.image.unwrap().image, node.image);
    assert_eq!(node.prints(&id, "id -u; echo $HOSTNAME | wc -l; cat /etc/resolv.conf >/dev/null").await, "0\n1\n");
    let failed = node.exec(&id, "echo a; echo b >&2; exit 3", 10).await.unwrap();
    assert_eq!((failed.stdout.as_slice(), failed.stderr.as_slice(), failed.exit_code), (&b"a\n"[..], &b"b\n"[..], 3));
    node.stop_container(&id, 10).await;
    let status = node.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (pb::ContainerState::ContainerExited, 7, "Error")
    );
    assert!(status.started_at >= status.created_at && status.finished_at >= status.started_at);
    node.stop_container(&id, 10).await;
    for _ in 0..2 {
        node.remove_container(&id).await;
    }
    assert!(node.containers(pb::ContainerFilter::default()).await.is_empty());
    node.remove(&pod).await;
    node.end();
}
