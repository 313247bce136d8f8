//! Who a container's processes are, what they may do, and that this is what is shown of them.

use serde_json::json;
use tare_integration::image::{Image, Layer};
use tare_integration::programs;
use tare_proto::runtime::v1 as pb;

use crate::node::{Client, Node};

/// busybox, and users: one with its own group, and with one that the image knows alone.
fn image() -> Image {
    let program = std::fs::read(programs::peer("bookworm", "busybox").unwrap()).unwrap();
    let mut layer = Layer::default();
    for dir in ["bin", "etc", "tmp"] {
        layer.folder(dir).unwrap();
    }
    layer.file("bin/busybox", 0o755, &program).unwrap();
    for applet in ["sh", "id", "sleep"] {
        layer.link(&format!("bin/{applet}"), "busybox").unwrap();
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n").unwrap();
    layer.file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\nof-image:x:50000:user\n").unwrap();
    Image::of(vec![layer], &json!({"Env": ["PATH=/bin"]})).unwrap()
}

async fn with(
    node: &mut Client,
    pod: &str,
    image: &str,
    change: impl FnOnce(&mut pb::LinuxContainerSecurityContext),
) -> String {
    let mut config = node.container("main", "sleep 1000");
    config.image = Some(pb::ImageSpec { image: image.into(), ..Default::default() });
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    node.running(pod, config).await
}

#[tokio::test]
async fn groups_of_the_image_are_merged_or_left_out_and_what_is_shown_is_what_runs() {
    let mut node = Node::start().await;
    node.registry.push("groups", "latest", &image()).unwrap();
    let name = node.registry.reference("groups");
    let image = pb::ImageSpec { image: name.clone(), ..Default::default() };
    node.images.pull_image(pb::PullImageRequest { image: Some(image), ..Default::default() }).await.unwrap();
    let features = node.client.status(pb::StatusRequest::default()).await.unwrap().into_inner().features.unwrap();
    assert!(features.supplemental_groups_policy);
    let config = node.pod("web");
    let pod = node.run(config).await;
    for (policy, groups) in [
        (pb::SupplementalGroupsPolicy::Merge, vec![1000, 1234, 50000]),
        (pb::SupplementalGroupsPolicy::Strict, vec![1000, 1234]),
    ] {
        let id = with(&mut node, &pod, &name, |security| {
            security.run_as_user = Some(pb::Int64Value { value: 1000 });
            security.supplemental_groups = vec![1234];
            security.set_supplemental_groups_policy(policy);
        });
        let id = id.await;
        let mut shown = node.status(&id).await.user.unwrap().linux.unwrap();
        shown.supplemental_groups.sort_unstable();
        assert_eq!(shown, pb::LinuxContainerUser { uid: 1000, gid: 1000, supplemental_groups: groups.clone() });
        let words = groups.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(node.prints(&id, "id -G").await.trim(), words);
        node.remove_container(&id).await;
    }
    let mut config = node.container("none", "true");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_group = Some(pb::Int64Value { value: 1002 });
    assert!(node.create(&pod, config).await.unwrap_err().message().contains("without user"));
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn the_network_is_managed_by_those_alone_who_were_given_the_right_to() {
    let (mut node, _netns) = crate::network::node().await;
    let mut config = crate::network::own_network(&node, "web");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = node.run(config).await;
    let image = node.image.clone();
    let capabilities = |add: &[&str], drop: &[&str]| {
        let all = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Some(pb::Capability { add_capabilities: all(add), drop_capabilities: all(drop), ..Default::default() })
    };
    for (number, (privileged, add, drop, may)) in [
        (true, [].as_slice(), [].as_slice(), true),
        (false, &[], &[], false),
        (false, &["NET_ADMIN"], &[], true),
        (false, &["ALL"], &[], true),
        (false, &["NET_ADMIN"], &["ALL"], true),
        (false, &[], &["ALL"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let id = with(&mut node, &pod, &image, |security| {
            security.privileged = privileged;
            security.capabilities = capabilities(add, drop);
        });
        let id = id.await;
        let made = node.exec(&id, &format!("busybox brctl addbr b{number}"), 10).await.unwrap();
        assert_eq!(made.exit_code == 0, may, "{add:?} {drop:?}: {}", String::from_utf8_lossy(&made.stderr));
        node.remove_container(&id).await;
    }
    let id = with(&mut node, &pod, &image, |security| security.capabilities = capabilities(&[], &["NET_RAW"])).await;
    let pinged = node.exec(&id, "busybox ping -c 1 127.0.0.1", 10).await.unwrap();
    assert!(pinged.exit_code != 0 && !pinged.stdout.is_empty(), "{pinged:?}");
    assert!(String::from_utf8_lossy(&pinged.stderr).contains("permission denied"), "{pinged:?}");
    node.remove(&pod).await;
    node.end();
}
