//! Lists in one piece and as a stream, with every filter, and calls that mean something that is not there.

use std::collections::HashMap;

use tare_proto::runtime::v1 as pb;
use tonic::Streaming;

use crate::node::{Client, Node};

/// All that a stream says.
async fn all<T, U>(answer: Result<tonic::Response<Streaming<T>>, tonic::Status>, of: fn(T) -> Vec<U>) -> Vec<U> {
    let (mut stream, mut all) = (answer.unwrap().into_inner(), Vec::new());
    while let Some(piece) = stream.message().await.unwrap() {
        all.extend(of(piece));
    }
    all
}

async fn pods(node: &mut Client, filter: pb::PodSandboxFilter) -> Vec<String> {
    let listed = node.client.list_pod_sandbox(pb::ListPodSandboxRequest { filter: Some(filter.clone()) }).await;
    let listed = listed.unwrap().into_inner().items;
    let streamed = node.client.stream_pod_sandboxes(pb::StreamPodSandboxesRequest { filter: Some(filter) }).await;
    assert_eq!(all(streamed, |piece| piece.pod_sandboxes).await, listed);
    listed.into_iter().map(|pod| pod.id).collect()
}

async fn containers(node: &mut Client, filter: pb::ContainerFilter) -> Vec<String> {
    let listed = node.containers(filter.clone()).await;
    let streamed = node.client.stream_containers(pb::StreamContainersRequest { filter: Some(filter) }).await;
    assert_eq!(all(streamed, |piece| piece.containers).await, listed);
    listed.into_iter().map(|container| container.id).collect()
}

/// Of which containers there are statistics.
async fn counted(node: &mut Client, filter: Option<pb::ContainerStatsFilter>) -> Vec<String> {
    let ids = |stats: Vec<pb::ContainerStats>| {
        let mut ids: Vec<String> = stats.into_iter().filter_map(|one| Some(one.attributes?.id)).collect();
        ids.sort();
        ids
    };
    let request = pb::ListContainerStatsRequest { filter: filter.clone() };
    let listed = ids(node.client.list_container_stats(request).await.unwrap().into_inner().stats);
    let streamed = node.client.stream_container_stats(pb::StreamContainerStatsRequest { filter }).await;
    assert_eq!(ids(all(streamed, |piece| piece.container_stats).await), listed);
    listed
}

async fn counted_pods(node: &mut Client, filter: Option<pb::PodSandboxStatsFilter>) -> Vec<String> {
    let streamed = node.client.stream_pod_sandbox_stats(pb::StreamPodSandboxStatsRequest { filter }).await;
    let stats = all(streamed, |piece| piece.pod_sandbox_stats).await;
    stats.into_iter().filter_map(|one| Some(one.attributes?.id)).collect()
}

fn labels(value: &str) -> HashMap<String, String> {
    HashMap::from([("stream-test".to_owned(), value.to_owned())])
}

#[tokio::test]
async fn lists_and_streams_of_them_say_the_same_under_every_filter() {
    let mut node = Node::start().await;
    let mut config = node.pod("web");
    config.labels = labels("yes");
    let pod = node.run(config).await;
    let state = |state: pb::PodSandboxState| Some(pb::PodSandboxStateValue { state: state.into() });
    for (filter, found) in [
        (pb::PodSandboxFilter { id: pod.clone(), ..Default::default() }, true),
        (pb::PodSandboxFilter { id: "none".into(), ..Default::default() }, false),
        (pb::PodSandboxFilter { state: state(pb::PodSandboxState::SandboxReady), ..Default::default() }, true),
        (pb::PodSandboxFilter { state: state(pb::PodSandboxState::SandboxNotready), ..Default::default() }, false),
        (pb::PodSandboxFilter { label_selector: labels("yes"), ..Default::default() }, true),
        (pb::PodSandboxFilter { label_selector: labels("no"), ..Default::default() }, false),
    ] {
        assert_eq!(pods(&mut node, filter.clone()).await.contains(&pod), found, "{filter:?}");
    }
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let mut config = node.container(name, "sleep 1000");
        config.labels = labels(name);
        ids.push(node.running(&pod, config).await);
    }
    let one = ids[0].clone();
    let state = |state: pb::ContainerState| Some(pb::ContainerStateValue { state: state.into() });
    for (filter, count) in [
        (pb::ContainerFilter { id: one.clone(), ..Default::default() }, 1),
        (pb::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() }, 3),
        (pb::ContainerFilter { state: state(pb::ContainerState::ContainerRunning), ..Default::default() }, 3),
        (pb::ContainerFilter { state: state(pb::ContainerState::ContainerExited), ..Default::default() }, 0),
        (pb::ContainerFilter { label_selector: labels("two"), ..Default::default() }, 1),
        (pb::ContainerFilter { label_selector: labels("no"), ..Default::default() }, 0),
    ] {
        assert_eq!(containers(&mut node, filter.clone()).await.len(), count, "{filter:?}");
    }
    let stats = node.client.container_stats(pb::ContainerStatsRequest { container_id: one.clone() }).await;
    let stats = stats.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().metadata.unwrap().name, "one");
    assert!(stats.cpu.unwrap().timestamp > 0 && stats.memory.unwrap().timestamp > 0);
    let mut sorted = ids.clone();
    sorted.sort();
    for (filter, found) in [
        (None, sorted.clone()),
        (Some(pb::ContainerStatsFilter { id: one.clone(), ..Default::default() }), vec![one.clone()]),
        (Some(pb::ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..Default::default() }), sorted),
        (Some(pb::ContainerStatsFilter { label_selector: labels("one"), ..Default::default() }), vec![one]),
        (Some(pb::ContainerStatsFilter { label_selector: labels("baz"), ..Default::default() }), vec![]),
    ] {
        assert_eq!(counted(&mut node, filter.clone()).await, found, "{filter:?}");
    }
    for (filter, count) in [
        (None, 1),
        (Some(pb::PodSandboxStatsFilter { id: pod.clone(), ..Default::default() }), 1),
        (Some(pb::PodSandboxStatsFilter { label_selector: labels("yes"), ..Default::default() }), 1),
        (Some(pb::PodSandboxStatsFilter { label_selector: labels("no"), ..Default::default() }), 0),
    ] {
        assert_eq!(counted_pods(&mut node, filter.clone()).await.len(), count, "{filter:?}");
    }
    let metrics = node.client.stream_pod_sandbox_metrics(pb::StreamPodSandboxMetricsRequest {}).await;
    let metrics = all(metrics, |piece| piece.pod_sandbox_metrics).await;
    assert!(metrics.iter().any(|one| one.pod_sandbox_id == pod));
    let image = node.image.clone();
    for filter in
        [None, Some(pb::ImageFilter { image: Some(pb::ImageSpec { image: image.clone(), ..Default::default() }) })]
    {
        let images =
            all(node.images.stream_images(pb::StreamImagesRequest { filter }).await, |piece| piece.images).await;
        assert!(images.iter().any(|one| one.repo_tags.contains(&image)));
    }
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn what_nobody_knows_is_stopped_and_removed_and_what_is_may_be_in_any_state() {
    let mut node = Node::start().await;
    let nobody = "6f0c4a53-9d6b-4a3f-8d0a-111111111111";
    node.stop(nobody).await;
    node.remove(nobody).await;
    node.stop_container(nobody, 0).await;
    node.remove_container(nobody).await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let config = node.container("created", "sleep 1000");
    let created = node.create(&pod, config).await.unwrap();
    let config = node.container("running", "sleep 1000");
    let running = node.running(&pod, config).await;
    let config = node.container("stopped", "trap exit TERM; while :; do sleep 0.01; done");
    let stopped = node.running(&pod, config).await;
    node.stop_container(&stopped, 60).await;
    for id in [created, running, stopped] {
        for _ in 0..2 {
            node.remove_container(&id).await;
        }
        let filter = pb::ContainerFilter { id, ..Default::default() };
        assert!(node.containers(filter).await.is_empty());
    }
    node.remove(&pod).await;
    node.end();
}
