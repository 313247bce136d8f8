//! Pods.

use tare_proto::runtime::v1 as pb;
use tonic::Code;

use crate::node::Node;

#[tokio::test]
async fn a_pod_is_shown_as_it_was_asked_for_and_goes_without_a_trace_however_often_it_is_told_to() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let id = node.run(config.clone()).await;
    let again = pb::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    assert_eq!(node.client.run_pod_sandbox(again).await.unwrap_err().code(), Code::AlreadyExists);
    let status = node.pod_status(&id[..13]).await;
    assert_eq!(
        (&status.metadata, &status.labels, &status.annotations),
        (&config.metadata, &config.labels, &config.annotations)
    );
    assert_eq!((status.state(), status.created_at > 0), (pb::PodSandboxState::SandboxReady, true));
    assert_eq!(node.pods().await.len(), 1);
    for _ in 0..2 {
        node.stop(&id).await;
        assert_eq!(node.pod_status(&id).await.state(), pb::PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        node.remove(&id).await;
        assert!(node.pods().await.is_empty());
    }
    let gone = pb::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false };
    assert_eq!(node.client.pod_sandbox_status(gone).await.unwrap_err().code(), Code::NotFound);
    node.end();
}

#[tokio::test]
async fn a_pod_that_cannot_be_is_refused_and_leaves_its_name_free() {
    let mut node = Node::with("[cri]\nsystemd_cgroup = false\n").await;
    let good = node.pod("web");
    let mut bad = good.clone();
    bad.linux.as_mut().unwrap().sysctls.insert("kernel.core_pattern".into(), "|x".into());
    let request = pb::RunPodSandboxRequest { config: Some(bad), runtime_handler: String::new() };
    let refused = node.client.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let request = pb::RunPodSandboxRequest { config: Some(good.clone()), runtime_handler: "none".into() };
    assert_eq!(node.client.run_pod_sandbox(request).await.unwrap_err().code(), Code::NotFound);
    assert!(node.pods().await.is_empty());
    let id = node.run(good).await;
    node.remove(&id).await;
    node.end();
}
