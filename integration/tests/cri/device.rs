//! Devices by name, as vendors' files describe them.

use tare_proto::runtime::v1 as pb;

use crate::node::Node;

const FILE: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR=yes]
devices:
  - name: "0"
    containerEdits:
      env: [GPU=0]
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/null}
      mounts:
        - {hostPath: LIBRARY, containerPath: /usr/lib/gpu, options: [ro, nosuid, nodev, bind]}
  - name: "1"
    containerEdits:
      env: [GPU1=1]
"#;

#[tokio::test]
async fn a_device_is_named_by_the_field_or_an_annotation_and_brings_what_its_file_says() {
    let dir = tempfile::Builder::new().prefix("tare-cri.").tempdir().unwrap();
    let (files, library) = (dir.path().join("cdi"), dir.path().join("library"));
    for folder in [&files, &library] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(library.join("gpu.so"), "").unwrap();
    std::fs::write(files.join("gpu.yaml"), FILE.replace("LIBRARY", &library.display().to_string())).unwrap();
    let config = format!("[cri]\ncdi_spec_dirs = [{files:?}]\n");
    let mut node = Node::at(dir, &config).await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "while :; do sleep 0.05; done");
    config.cdi_devices = vec![pb::CdiDevice { name: "vendor.com/gpu=0".into() }];
    config.annotations.insert("cdi.k8s.io/more".into(), "vendor.com/gpu=1".into());
    let id = node.running(&pod, config).await;
    assert_eq!(node.prints(&id, "echo $VENDOR $GPU $GPU1; ls /usr/lib/gpu").await, "yes 0 1\ngpu.so\n");
    assert_eq!(node.prints(&id, "stat -c %t:%T /dev/gpu0; echo x > /dev/gpu0").await, "1:3\n");
    let frozen = node.exec(&id, "touch /usr/lib/gpu/x", 10).await.unwrap();
    assert_ne!(frozen.exit_code, 0);
    let mut config = node.container("other", "true");
    config.cdi_devices = vec![pb::CdiDevice { name: "vendor.com/gpu=7".into() }];
    let refused = node.create(&pod, config).await.unwrap_err();
    assert!(refused.message().contains("unresolvable CDI devices vendor.com/gpu=7"), "{refused}");
    node.remove(&pod).await;
    node.end();
}
