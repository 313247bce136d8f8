//! Images: pulled by every kind of name, known by each, one id wherever it is told, and gone at once.

use serde_json::json;
use tare_integration::image::{Image, Layer};
use tare_proto::runtime::v1 as pb;

use crate::node::{Client, Node};

fn spec(image: &str) -> Option<pb::ImageSpec> {
    Some(pb::ImageSpec { image: image.into(), ..Default::default() })
}

async fn pull(node: &mut Client, name: &str) -> String {
    let request = pb::PullImageRequest { image: spec(name), ..Default::default() };
    node.images.pull_image(request).await.unwrap().into_inner().image_ref
}

async fn status(node: &mut Client, name: &str) -> Option<pb::Image> {
    let request = pb::ImageStatusRequest { image: spec(name), verbose: false };
    node.images.image_status(request).await.unwrap().into_inner().image
}

async fn list(node: &mut Client) -> Vec<pb::Image> {
    node.images.list_images(pb::ListImagesRequest::default()).await.unwrap().into_inner().images
}

async fn remove(node: &mut Client, name: &str) {
    node.images.remove_image(pb::RemoveImageRequest { image: spec(name) }).await.unwrap();
}

/// An image of one file, and with it a digest of its own.
fn of(text: &str, config: &serde_json::Value) -> Image {
    let mut layer = Layer::default();
    layer.file("it", 0o644, text.as_bytes()).unwrap();
    Image::of(vec![layer], config).unwrap()
}

#[tokio::test]
async fn an_image_has_the_names_it_was_pulled_by_and_is_gone_at_once_when_removed() {
    let mut node = Node::start().await;
    let image = of("one", &json!({}));
    for tag in ["latest", "test"] {
        node.registry.push("names", tag, &image).unwrap();
    }
    let base = node.registry.reference("names");
    let by_digest = format!("{base}@{}", image.manifest.digest);
    for (name, tags) in [
        (format!("{base}:test"), vec![format!("{base}:test")]),
        (base.clone(), vec![format!("{base}:latest")]),
        (by_digest.clone(), vec![]),
    ] {
        let id = pull(&mut node, &name).await;
        let found = status(&mut node, &name).await.unwrap();
        assert_eq!((&found.id, &found.repo_tags), (&id, &tags), "{name}");
        assert_eq!(found.repo_digests, std::slice::from_ref(&by_digest));
        assert!(found.size > 0);
        for other in tags.iter().chain([&id, &by_digest]) {
            assert_eq!(status(&mut node, other).await.as_ref(), Some(&found), "{other}");
        }
        assert!(list(&mut node).await.contains(&found));
        remove(&mut node, &id).await;
        assert_eq!(status(&mut node, &name).await, None);
        assert!(list(&mut node).await.iter().all(|image| image.id != id), "{name}");
    }
    let nothing = "0".repeat(64);
    remove(&mut node, &nothing).await; // what is not there is removed
    node.end();
}

#[tokio::test]
async fn one_image_has_one_id_under_all_of_its_names_and_several_have_several() {
    let mut node = Node::start().await;
    let one = of("one", &json!({}));
    for (repository, tag) in [("same", "1"), ("same", "2"), ("same", "3"), ("elsewhere", "1")] {
        node.registry.push(repository, tag, &one).unwrap();
    }
    let mut ids = Vec::new();
    for name in ["same:1", "same:2", "same:3", "elsewhere:1"] {
        let name = node.registry.reference(name);
        ids.push(pull(&mut node, &name).await);
    }
    ids.dedup();
    let [id] = ids.as_slice() else { panic!("{ids:?}") };
    let mut tags = status(&mut node, id).await.unwrap().repo_tags;
    tags.sort();
    assert_eq!(tags, ["elsewhere:1", "same:1", "same:2", "same:3"].map(|name| node.registry.reference(name)));

    for name in ["a", "b"] {
        node.registry.push(name, "latest", &of(name, &json!({}))).unwrap();
        let reference = node.registry.reference(name);
        let id = pull(&mut node, &reference).await;
        let listed = list(&mut node).await;
        let found: Vec<_> = listed.iter().filter(|image| image.id == id).collect();
        let [found] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(found.repo_tags, [format!("{reference}:latest")]);
    }

    // All that are asked at once to remove it do so, and to each it is gone when it answers.
    let mut removing = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (mut node, id) = (node.share(), id.clone());
        removing.spawn(async move {
            remove(&mut node, &id).await;
            status(&mut node, &id).await
        });
    }
    assert_eq!(removing.join_all().await, [const { None }; 5]);
    node.end();
}

#[tokio::test]
async fn an_images_user_is_shown_and_its_id_is_that_of_the_containers_that_run_from_it() {
    let mut node = Node::start().await;
    for (user, uid, name) in
        [("1002", 1002, ""), ("www-data", 0, "www-data"), ("1003:users", 1003, ""), ("www-data:100", 0, "www-data")]
    {
        node.registry.push("user", "latest", &of(user, &json!({ "User": user }))).unwrap();
        let reference = node.registry.reference("user");
        let id = pull(&mut node, &reference).await;
        let image = status(&mut node, &reference).await.unwrap();
        assert_eq!((image.uid.unwrap_or_default().value, image.username.as_str()), (uid, name));
        remove(&mut node, &id).await;
    }

    let name = node.image.clone();
    let id = pull(&mut node, &name).await;
    assert_eq!(status(&mut node, &name).await.unwrap().id, id);
    let config = node.pod("web");
    let pod = node.run(config).await;
    let mut config = node.container("main", "sleep 1000");
    config.image = Some(pb::ImageSpec { image: id.clone(), user_specified_image: name, ..Default::default() });
    let container = node.running(&pod, config).await;
    assert_eq!(node.status(&container).await.image_id, id);
    let filter = pb::ContainerFilter { id: container, ..Default::default() };
    assert_eq!(node.containers(filter).await.remove(0).image_id, id);
    node.remove(&pod).await;
    node.end();
}
