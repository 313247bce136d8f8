//! What `crictl inspect` and its like show: JSON in which people's templates look for containerd's words.

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

use crate::network::{self, own_network};

#[tokio::test]
async fn what_is_inspected_has_the_words_that_templates_look_for() {
    let (mut node, _netns) = network::node().await;
    let config = own_network(&node, "web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "sleep 1000");
    config.envs = vec![pb::KeyValue { key: "SAID".into(), value: "so".into() }];
    config.linux.get_or_insert_default().resources.get_or_insert_default().memory_limit_in_bytes = 64 << 20;
    let id = node.running(&pod, config).await;

    let request = pb::ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let said = node.client.container_status(request).await.unwrap().into_inner().info;
    let info: Value = serde_json::from_str(&said["info"]).unwrap();
    assert_eq!(info["sandboxID"], json!(pod));
    assert!(info["pid"].as_u64().unwrap() > 1);
    assert_eq!((&info["removing"], &info["snapshotKey"]), (&json!(false), &json!(id)));
    assert_eq!((&info["snapshotter"], &info["runtimeType"]), (&json!("overlayfs"), &json!("io.containerd.tare.v2")));
    assert_eq!(info["runtimeOptions"]["systemd_cgroup"], json!(false));
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], json!("/bin/sh"));
    assert_eq!(
        info["config"],
        json!({
            "metadata": {"name": "main"},
            "image": {"image": node.image},
            "command": ["/bin/sh", "-c", "sleep 1000"],
            "envs": [{"key": "SAID", "value": "so"}],
            "labels": {"part": "main"},
            "linux": {"resources": {"memory_limit_in_bytes": 64 << 20}},
        })
    );

    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let said = node.client.pod_sandbox_status(request).await.unwrap().into_inner();
    let info: Value = serde_json::from_str(&said.info["info"]).unwrap();
    assert!(info["pid"].as_u64().unwrap() > 1);
    assert_eq!((&info["processStatus"], &info["netNamespaceClosed"]), (&json!("running"), &json!(false)));
    assert_eq!(info["runtimeType"], json!("io.containerd.tare.v2"));
    assert_eq!(info["config"]["metadata"]["namespace"], json!("ns"));
    assert_eq!(info["config"]["hostname"], json!("web-host"));
    let ip = said.status.unwrap().network.unwrap().ip;
    assert_eq!(info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"], json!(ip));
    node.remove(&pod).await;
    node.end();
}
