//! A container that is dumped by CRIU while it runs.

use std::os::unix::fs::PermissionsExt as _;

use tare_proto::runtime::v1 as pb;
use tonic::Code;

use crate::node::Node;

#[tokio::test]
async fn a_checkpoint_is_an_archive_of_all_that_a_container_is_and_the_container_goes_on() {
    // On the machine's network: to lock one of the pod's own, CRIU wants iptables, which not every machine has.
    let mut node = Node::start().await;
    let pod = node.pod("web");
    let pod = node.run(pod).await;
    let mut config = node.container("main", "echo said; echo written > /written; while :; do sleep 0.05; done");
    config.log_path = "main.log".into();
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().set_pid(pb::NamespaceMode::Container);
    let id = node.create(&pod, config).await.unwrap();
    let location = node.dir.path().join("dumped.tar");
    let mut request = pb::CheckpointContainerRequest {
        container_id: id.clone(),
        location: location.display().to_string(),
        timeout: 0,
    };
    let early = node.client.checkpoint_container(request.clone()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    node.start_container(&id).await;
    node.prints(&id, "while ! [ -s /written ]; do sleep 0.01; done").await;
    node.client.checkpoint_container(request.clone()).await.unwrap();
    assert_eq!(std::fs::metadata(&location).unwrap().permissions().mode() & 0o777, 0o600);
    let mut names = Vec::new();
    let mut archive = tar::Archive::new(std::fs::File::open(&location).unwrap());
    for entry in archive.entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    for name in [
        "checkpoint/inventory.img",
        "config.dump",
        "container.log",
        "dump.log",
        "rootfs-diff.tar",
        "spec.dump",
        "status.dump",
    ] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    assert_eq!(node.prints(&id, "cat /written").await, "written\n");
    assert_eq!(node.status(&id).await.state(), pb::ContainerState::ContainerRunning);
    request.location = "dumped.tar".into();
    let refused = node.client.checkpoint_container(request).await.unwrap_err();
    assert!(refused.message().contains("location"), "{refused}");
    node.remove(&pod).await;
    node.end();
}
