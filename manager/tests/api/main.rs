//! The daemon as a process, spoken to over its sockets.

mod operator;
mod place;
mod proxy;
mod robust;
mod tared;

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;

use tare_proto::any;
use tare_proto::containerd::events::TaskStart;
use tare_proto::containerd::services::content::v1 as content;
use tare_proto::containerd::services::events::v1 as events;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::introspection::v1 as introspection;
use tare_proto::containerd::services::leases::v1 as leases;
use tare_proto::containerd::services::snapshots::v1 as snapshots;
use tare_proto::containerd::types::Descriptor;
use tonic::Code;
use tonic::transport::Channel;

use tared::{Tared, tared, under_lease, within};

#[tokio::test]
async fn without_a_namespace_the_request_is_refused() {
    let tared = Tared::start().await;
    let mut client = images::images_client::ImagesClient::new(tared.channel().await);
    let status = client.list(images::ListImagesRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "namespace is required: failed precondition");
    let status = client.list(within("../etc", images::ListImagesRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

fn write(reference: &str, offset: i64, data: &[u8]) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: content::WriteAction::Write.into(),
        r#ref: reference.into(),
        offset,
        data: data.to_vec(),
        ..Default::default()
    }
}

fn commit(expected: &str, offset: i64) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        expected: expected.into(),
        offset,
        total: offset,
        ..Default::default()
    }
}

async fn written(
    client: &mut content::content_client::ContentClient<Channel>,
    lease: Option<&str>,
    messages: Vec<content::WriteContentRequest>,
) -> Result<Vec<content::WriteContentResponse>, tonic::Status> {
    let mut request = within("test", tokio_stream::iter(messages));
    if let Some(lease) = lease {
        request = under_lease(lease, request);
    }
    let mut stream = client.write(request).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

#[tokio::test]
async fn a_write_that_was_cut_goes_on_where_it_ended_and_wrong_digests_are_refused() {
    // Nothing refers to what is written here: the collector would take it.
    let mut tared = Tared::configured("[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = '1h'\n").await;
    let mut client = content::content_client::ContentClient::new(tared.channel().await);
    let digest = digest(b"hello world");
    written(&mut client, None, vec![write("r", 0, b"hello ")]).await.unwrap();
    tared.restart().await;
    let mut client = content::content_client::ContentClient::new(tared.channel().await);
    let status = client.status(within("test", content::StatusRequest { r#ref: "r".into() })).await.unwrap();
    assert_eq!(status.into_inner().status.unwrap().offset, 6);
    let wrong = written(&mut client, None, vec![write("r", 3, b"x")]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::OutOfRange);
    let other = self::digest(b"other");
    let wrong = written(&mut client, None, vec![write("r", 6, b"world"), commit(&other, 11)]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::FailedPrecondition, "{wrong:?}");
    let answers = written(&mut client, None, vec![write("r", 11, b""), commit(&digest, 11)]).await.unwrap();
    assert_eq!((answers.len(), answers[1].digest.as_str(), answers[1].offset), (2, digest.as_str(), 11));
    let there = written(&mut client, None, vec![write("r2", 0, b"hello world"), commit(&digest, 11)]).await;
    assert_eq!(there.unwrap_err().code(), Code::AlreadyExists);
    let read = content::ReadContentRequest { digest: digest.clone(), offset: 6, size: 3 };
    let piece = client.read(within("test", read)).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((piece.offset, piece.data.as_slice()), (6, &b"wor"[..]));
    let elsewhere = client.info(within("other", content::InfoRequest { digest })).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
}

#[tokio::test]
async fn what_a_lease_holds_stays_until_the_lease_goes() {
    let tared = Tared::start().await;
    let mut client = content::content_client::ContentClient::new(tared.channel().await);
    let mut leases = leases::leases_client::LeasesClient::new(tared.channel().await);
    let mut snapshots = snapshots::snapshots_client::SnapshotsClient::new(tared.channel().await);
    let lease = leases.create(within("test", leases::CreateRequest::default())).await.unwrap();
    let lease = lease.into_inner().lease.unwrap().id;
    let (held, loose) = (digest(b"held"), digest(b"loose"));
    written(&mut client, Some(&lease), vec![write("h", 0, b"held"), commit(&held, 4)]).await.unwrap();
    written(&mut client, None, vec![write("l", 0, b"loose"), commit(&loose, 5)]).await.unwrap();
    let prepare =
        snapshots::PrepareSnapshotRequest { snapshotter: "overlayfs".into(), key: "k".into(), ..Default::default() };
    snapshots.prepare(under_lease(&lease, within("test", prepare))).await.unwrap();
    let unknown = written(&mut client, Some("nobody"), vec![write("n", 0, b"x")]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    collect(&mut leases).await;
    let mut info =
        async |digest: &str| client.info(within("test", content::InfoRequest { digest: digest.into() })).await;
    info(&held).await.unwrap();
    assert_eq!(info(&loose).await.unwrap_err().code(), Code::NotFound);

    leases.delete(within("test", leases::DeleteRequest { id: lease, sync: true })).await.unwrap();
    assert_eq!(info(&held).await.unwrap_err().code(), Code::NotFound);
    let stat = snapshots::StatSnapshotRequest { snapshotter: "overlayfs".into(), key: "k".into() };
    assert_eq!(snapshots.stat(within("test", stat)).await.unwrap_err().code(), Code::NotFound);
    let blobs = tared.dir.path().join("root/blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}

/// Deletes a lease made for it, and waits for the collection that follows.
async fn collect(leases: &mut leases::leases_client::LeasesClient<Channel>) {
    let lease = leases::CreateRequest { id: "gone".into(), labels: HashMap::new() };
    leases.create(within("test", lease)).await.unwrap();
    leases.delete(within("test", leases::DeleteRequest { id: "gone".into(), sync: true })).await.unwrap();
}

#[tokio::test]
async fn changes_are_told_to_those_who_subscribed_with_the_namespace_they_happened_in() {
    let tared = Tared::start().await;
    let mut events = events::events_client::EventsClient::new(tared.channel().await);
    let filters = vec!["namespace==a,topic~=\"^/images/\"".into(), "topic==\"/tasks/start\"".into()];
    let mut told = events.subscribe(events::SubscribeRequest { filters }).await.unwrap().into_inner();
    let mut images = images::images_client::ImagesClient::new(tared.channel().await);
    let target = Descriptor { digest: digest(b"m"), size: 1, media_type: "m".into(), ..Default::default() };
    let image = images::Image { name: "i".into(), target: Some(target), ..Default::default() };
    for namespace in ["b", "a"] {
        let create = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        images.create(within(namespace, create)).await.unwrap();
    }
    let delete = images::DeleteImageRequest { name: "i".into(), sync: true, target: None };
    images.delete(within("a", delete)).await.unwrap();
    publish(
        tared.dir.path(),
        &any::pack("containerd.events.TaskStart", &TaskStart { container_id: "c".into(), pid: 3 }),
    );
    for (namespace, topic) in [("a", "/images/create"), ("a", "/images/delete"), ("shim", "/tasks/start")] {
        let event = told.message().await.unwrap().unwrap();
        assert_eq!((event.namespace.as_str(), event.topic.as_str()), (namespace, topic));
        assert!(event.timestamp.is_some());
    }
}

/// As a shim does that cannot reach the ttrpc socket.
fn publish(dir: &Path, event: &prost_types::Any) {
    use prost::Message as _;
    use std::io::Write as _;
    let mut command = tared(dir);
    command.args(["publish", "--topic", "/tasks/start", "--namespace", "shim"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&event.encode_to_vec()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn plugins_are_found_by_what_clients_ask_for() {
    let tared = Tared::start().await;
    let mut client = introspection::introspection_client::IntrospectionClient::new(tared.channel().await);
    let mut found = async |filter: &str| {
        let request = introspection::PluginsRequest { filters: vec![filter.into()] };
        client.plugins(request).await.map(|answer| answer.into_inner().plugins)
    };
    let plugins = found("type==io.containerd.snapshotter.v1, id==overlayfs").await.unwrap();
    assert_eq!((plugins.len(), plugins[0].platforms.len()), (1, 1), "{plugins:?}");
    assert!(Path::new(&plugins[0].exports["root"]).is_dir());
    let restart = found("id==restart").await.unwrap().remove(0);
    assert_eq!(restart.capabilities, ["no", "always", "on-failure", "unless-stopped"], "nerdctl looks here");
    assert!(found("id==opt").await.unwrap().is_empty(), "what is not served is not listed");
    assert_eq!(found("type==").await.map(|list| list.len()).unwrap_or_default(), 0);
    let server = client.server(()).await.unwrap().into_inner();
    assert_eq!(server.pid, u64::from(tared.server.id()));
}

#[tokio::test]
async fn asked_to_end_the_daemon_takes_its_sockets_along() {
    let mut tared = Tared::start().await;
    let pid = rustix::process::Pid::from_child(&tared.server);
    // A subscriber that reads on for ever does not keep it.
    let mut events = events::events_client::EventsClient::new(tared.channel().await);
    let _told = events.subscribe(events::SubscribeRequest::default()).await.unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(tared.server.wait().unwrap().success(), "{}", tared.log());
    assert!(!tared.socket().exists());
    assert!(!tared.dir.path().join("d.sock.ttrpc").exists());
}

fn digest(bytes: &[u8]) -> String {
    tare_manager::names::Digest::of(bytes).to_string()
}
