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

#[tokio::test]
async fn what_a_container_says_is_in_its_log_and_a_new_one_is_begun_when_asked() {
    let mut node = Node::with("[cri]\ndrain_exec_sync_io_seconds = 1\n").await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "echo out; echo err >&2; while :; do sleep 0.02; echo again; done");
    config.log_path = "main/0.log".into();
    let id = node.running(&pod, config).await;
    let log = node.logs().join("main/0.log");
    assert_eq!(node.status(&id).await.log_path, log.display().to_string());
    let text = until(&log, |text| text.contains("again")).await;
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    assert!(words.iter().any(|line| line[1..] == ["stdout", "F", "out"]), "{text}");
    assert!(words.iter().any(|line| line[1..] == ["stderr", "F", "err"]), "{text}");
    let renamed = log.with_extension("log.1");
    std::fs::rename(&log, &renamed).unwrap();
    node.client.reopen_container_log(pb::ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    let old = std::fs::read(&renamed).unwrap();
    until(&log, |text| text.contains("again")).await;
    assert_eq!(std::fs::read(&renamed).unwrap(), old);
    let held = node.exec(&id, "sleep 4712 &", 60).await.unwrap_err();
    assert!(held.message().contains("failed to drain exec process output in 1 s"), "{held}");
    node.stop_container(&id, 0).await;
    let stopped = node.client.reopen_container_log(pb::ReopenContainerLogRequest { container_id: id }).await;
    assert_eq!(stopped.unwrap_err().code(), Code::FailedPrecondition);
    node.remove(&pod).await;
    node.end();
}

async fn until(file: &std::path::Path, so: impl Fn(&str) -> bool) -> String {
    for _ in 0..2000 {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if so(&text) {
            return text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{}: {:?}", file.display(), std::fs::read_to_string(file));
}

#[tokio::test]
async fn an_exec_that_takes_too_long_is_killed_and_one_that_says_too_much_is_cut() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let config = node.container("main", "while :; do sleep 0.05; done");
    let id = node.running(&pod, config).await;
    let late = node.exec(&id, "sleep 4711", 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(node.prints(&id, "ps | grep -c '[s]leep 4711' || true").await, "0\n");
    let much = node.exec(&id, "yes | head -c 20000000; echo end >&2", 60).await.unwrap();
    assert_eq!((much.exit_code, much.stderr.as_slice()), (0, &b"end\n"[..]));
    assert_eq!(much.stdout.len() + much.stderr.len(), (16 << 20) - 4096);
    let missing = pb::ExecSyncRequest { container_id: id.clone(), cmd: vec!["/none".into()], timeout: 5 };
    let missing = node.client.exec_sync(missing).await.unwrap_err();
    assert!(missing.message().contains("no such file or directory"), "{missing}");
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn a_container_that_cannot_be_started_has_ended_and_says_why() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "");
    config.command = vec!["/none".into()];
    let id = node.create(&pod, config).await.unwrap();
    let request = pb::StartContainerRequest { container_id: id.clone() };
    let refused = node.client.start_container(request.clone()).await.unwrap_err();
    assert!(refused.message().contains("no such file or directory"), "{refused}");
    let status = node.status(&id).await;
    assert_eq!((status.state(), status.exit_code), (pb::ContainerState::ContainerExited, 128));
    assert_eq!(status.reason, "StartError");
    assert_eq!(node.client.start_container(request).await.unwrap_err().code(), Code::FailedPrecondition);
    let mut config = node.container("other", "true");
    config.image = Some(pb::ImageSpec { image: "none:latest".into(), ..Default::default() });
    assert_eq!(node.create(&pod, config).await.unwrap_err().code(), Code::NotFound);
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn limits_hold_can_be_changed_and_what_they_kill_is_said_to_be_out_of_memory() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "sleep 0.3; dd if=/dev/zero of=/dev/null bs=40M count=5");
    let limit = 16 << 20;
    let resources = pb::LinuxContainerResources { memory_limit_in_bytes: limit, cpu_shares: 512, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let id = node.running(&pod, config).await;
    let stats = pb::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.client.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    let memory = stats.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0 && stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    let available = memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value;
    assert_eq!(available, limit.unsigned_abs());
    assert!(stats.writable_layer.unwrap().inodes_used.unwrap().value > 0);
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

    let config = node.container("other", "while :; do sleep 0.05; done");
    let id = node.running(&pod, config).await;
    let new = pb::LinuxContainerResources { memory_limit_in_bytes: 2 * limit, ..Default::default() };
    let update =
        pb::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(new), ..Default::default() };
    node.client.update_container_resources(update).await.unwrap();
    let shown = node.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(shown.memory_limit_in_bytes, 2 * limit);
    let stats = pb::ContainerStatsRequest { container_id: id };
    let memory = node.client.container_stats(stats).await.unwrap().into_inner().stats.unwrap().memory.unwrap();
    let available = memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value;
    assert_eq!(available, 2 * limit.unsigned_abs());
    let pods = node.client.list_pod_sandbox_stats(pb::ListPodSandboxStatsRequest::default()).await.unwrap();
    let linux = pods.into_inner().stats.remove(0).linux.unwrap();
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.process.unwrap().process_count.unwrap().value >= 2);
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn an_image_is_mounted_as_a_volume_whole_or_in_part_for_reading_only() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let image = pb::ImageSpec { image: node.image.clone(), ..Default::default() };
    let mount = |target: &str, part: &str| pb::Mount {
        container_path: target.into(),
        image: Some(image.clone()),
        image_sub_path: part.into(),
        readonly: true,
        ..Default::default()
    };
    let mut config = node.container("main", "while :; do sleep 0.05; done");
    let two = pb::ImageSpec { image: node.two.clone(), ..Default::default() };
    config.mounts = vec![
        mount("/whole", ""),
        mount("/part", "etc"),
        pb::Mount { image: Some(two.clone()), ..mount("/two", "") },
        pb::Mount { image: Some(two), ..mount("/file", "low") },
    ];
    let id = node.running(&pod, config.clone()).await;
    assert_eq!(node.prints(&id, "cat /two/low /two/top /file").await, "low\ntop\nlow\n");
    assert_eq!(node.prints(&id, "/whole/bin/busybox echo runs; ls /part").await, "runs\ngroup\npasswd\n");
    let written = node.exec(&id, "touch /whole/x", 10).await.unwrap();
    assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only file system"));
    let status = node.status(&id).await;
    assert_eq!(status.mounts[0].image.as_ref().unwrap().image_ref, status.image_id);
    for (n, bad) in [mount("/x", "none"), mount("/x", "../etc"), pb::Mount { readonly: false, ..mount("/x", "") }]
        .into_iter()
        .enumerate()
    {
        let mut config = node.container(&format!("bad{n}"), "true");
        config.mounts = vec![bad];
        assert!(node.create(&pod, config).await.is_err());
    }
    assert_eq!(node.containers(pb::ContainerFilter::default()).await.len(), 1);
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn each_change_is_told_with_how_the_pod_stands_and_each_metric_has_its_labels() {
    let mut node = Node::start().await;
    let mut told = node.client.get_container_events(pb::GetEventsRequest {}).await.unwrap().into_inner();
    let config = node.pod("web");
    let pod = node.run(config).await;
    let config = node.container("main", "while :; do sleep 0.05; done");
    let id = node.running(&pod, config).await;
    let described =
        node.client.list_metric_descriptors(pb::ListMetricDescriptorsRequest {}).await.unwrap().into_inner();
    let metrics = node.client.list_pod_sandbox_metrics(pb::ListPodSandboxMetricsRequest {}).await.unwrap().into_inner();
    let samples = &metrics.pod_metrics[0].container_metrics[0].metrics;
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes"] {
        let sample = samples.iter().find(|sample| sample.name == name).unwrap();
        let description = described.descriptors.iter().find(|one| one.name == name).unwrap();
        assert_eq!(sample.label_values.len(), description.label_keys.len(), "{name}");
    }
    node.stop(&pod).await;
    node.remove(&pod).await;
    use pb::ContainerEventType as Kind;
    let (created, started) = (Kind::ContainerCreatedEvent, Kind::ContainerStartedEvent);
    let (stopped, deleted) = (Kind::ContainerStoppedEvent, Kind::ContainerDeletedEvent);
    for (of, kind) in [
        (&pod, created),
        (&pod, started),
        (&id, created),
        (&id, started),
        (&id, stopped),
        (&pod, stopped),
        (&id, deleted),
        (&pod, deleted),
    ] {
        let event = told.message().await.unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (of, kind));
        assert!(event.created_at > 0);
        assert_eq!(event.pod_sandbox_status.is_some(), kind != deleted || *of == id, "{kind:?}");
    }
    node.end();
}
