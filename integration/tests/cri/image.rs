//! Images that CRI did not pull itself.

use std::time::Duration;

use tare_proto::runtime::v1 as pb;

use crate::node::{Client, Node};

async fn image(node: &mut Client, name: &str) -> Option<pb::Image> {
    let spec = pb::ImageSpec { image: name.into(), ..Default::default() };
    let request = pb::ImageStatusRequest { image: Some(spec), verbose: false };
    node.images.image_status(request).await.unwrap().into_inner().image
}

/// Waits until an image can be asked for by its id, as it can when CRI has noticed that it is there.
async fn by_id(node: &mut Client, id: &str) -> Option<pb::Image> {
    for _ in 0..1000 {
        let names: Vec<String> = image(node, id).await.into_iter().flat_map(|image| image.repo_tags).collect();
        if !names.is_empty() {
            return image(node, id).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    None
}

#[tokio::test]
async fn an_image_that_was_fetched_and_not_unpacked_runs_and_keeps_its_id_when_its_tag_is_gone() {
    let mut node = Node::start().await;
    let name = node.image.clone();
    let id = image(&mut node, &name).await.unwrap().id;
    let spec = Some(pb::ImageSpec { image: id.clone(), ..Default::default() });
    node.images.remove_image(pb::RemoveImageRequest { image: spec }).await.unwrap();
    assert_eq!(image(&mut node, &name).await, None);
    let ctr = |args: &[&str]| {
        let out = node.daemon.ctr("bookworm").unwrap().args(["-n", "k8s.io"]).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    ctr(&["content", "fetch", "--plain-http", &name]);
    let snapshots = ctr(&["snapshot", "ls"]);
    assert_eq!(snapshots.matches("Committed").count(), 2, "the other image's: {snapshots}");
    let mut client = node.share();
    assert_eq!(by_id(&mut client, &id).await.unwrap().repo_tags.as_slice(), std::slice::from_ref(&name));
    let config = client.pod("web");
    let pod = client.run(config).await;
    let config = client.container("main", "while :; do sleep 0.05; done");
    let container = client.running(&pod, config).await;
    assert_eq!(client.prints(&container, "echo runs").await, "runs\n");
    ctr(&["image", "rm", &name]);
    assert_eq!(image(&mut client, &name).await, None);
    assert_eq!(image(&mut client, &id).await.unwrap().id, id);
    client.remove(&pod).await;
    node.end();
}
