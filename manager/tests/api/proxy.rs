//! A snapshotter in a program of its own: a server between two daemons, by which the one keeps its layers in the other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tare_proto::containerd::services::introspection::v1 as introspection;
use tare_proto::containerd::services::leases::v1 as leases;
use tare_proto::containerd::services::snapshots::v1 as pb;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};

use super::tared::{Tared, under_lease, within};

type Client = pb::snapshots_client::SnapshotsClient<Channel>;
type Labels = HashMap<String, String>;

const REFERENCE: &str = "containerd.io/snapshot.ref";
const LEASE: &str = "between";

/// Hands everything on to the other daemon's snapshotter `native`.
struct Between(Client);

/// Held by a lease there.
fn far<T>(message: T) -> Request<T> {
    under_lease(LEASE, within("far", message))
}

fn native() -> String {
    "native".into()
}

#[tonic::async_trait]
impl pb::snapshots_server::Snapshots for Between {
    type ListStream = tonic::Streaming<pb::ListSnapshotsResponse>;

    /// The layer `known` is there as soon as somebody asks for it, as if it were fetched lazily.
    async fn prepare(
        &self,
        request: Request<pb::PrepareSnapshotRequest>,
    ) -> Result<Response<pb::PrepareSnapshotResponse>, Status> {
        let mut client = self.0.clone();
        let asked = request.into_inner();
        assert_eq!(asked.snapshotter, "far");
        let known = asked.labels.get(REFERENCE).is_some_and(|reference| reference == "known");
        let prepare = pb::PrepareSnapshotRequest {
            snapshotter: native(),
            labels: if known { Labels::new() } else { asked.labels.clone() },
            ..asked.clone()
        };
        let prepared = client.prepare(far(prepare)).await?;
        if known {
            let (labels, snapshotter) = (asked.labels, native());
            let commit = pb::CommitSnapshotRequest {
                snapshotter,
                name: "fetched".into(),
                key: asked.key,
                labels,
                ..Default::default()
            };
            client.commit(far(commit)).await?;
            return Err(Status::already_exists("known: already exists"));
        }
        Ok(prepared)
    }

    async fn view(
        &self,
        request: Request<pb::ViewSnapshotRequest>,
    ) -> Result<Response<pb::ViewSnapshotResponse>, Status> {
        let view = pb::ViewSnapshotRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().view(far(view)).await
    }

    async fn mounts(&self, request: Request<pb::MountsRequest>) -> Result<Response<pb::MountsResponse>, Status> {
        let mounts = pb::MountsRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().mounts(far(mounts)).await
    }

    async fn commit(&self, request: Request<pb::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let commit = pb::CommitSnapshotRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().commit(far(commit)).await
    }

    async fn remove(&self, request: Request<pb::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let remove = pb::RemoveSnapshotRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().remove(far(remove)).await
    }

    async fn stat(
        &self,
        request: Request<pb::StatSnapshotRequest>,
    ) -> Result<Response<pb::StatSnapshotResponse>, Status> {
        let stat = pb::StatSnapshotRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().stat(far(stat)).await
    }

    async fn update(
        &self,
        request: Request<pb::UpdateSnapshotRequest>,
    ) -> Result<Response<pb::UpdateSnapshotResponse>, Status> {
        let update = pb::UpdateSnapshotRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().update(far(update)).await
    }

    async fn list(&self, request: Request<pb::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let list = pb::ListSnapshotsRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().list(far(list)).await
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Result<Response<pb::UsageResponse>, Status> {
        let usage = pb::UsageRequest { snapshotter: native(), ..request.into_inner() };
        self.0.clone().usage(far(usage)).await
    }

    async fn cleanup(&self, _: Request<pb::CleanupRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("cleanup: not implemented"))
    }
}

/// The two daemons, and what lies between them.
struct Stage {
    near: Tared,
    far: Tared,
}

impl Stage {
    async fn start() -> Stage {
        let far = Tared::start().await;
        let mut leases = leases::leases_client::LeasesClient::new(far.channel().await);
        let lease = leases::CreateRequest { id: LEASE.into(), labels: Labels::new() };
        leases.create(within("far", lease)).await.unwrap();
        let socket = far.dir.path().join("between.sock");
        let between = pb::snapshots_server::SnapshotsServer::new(Between(Client::new(far.channel().await)));
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        tokio::spawn(Server::builder().add_service(between).serve_with_incoming(incoming));
        // Nothing is collected but when a client waits for it.
        let config = format!(
            "[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = '1h'\n\
             [proxy_plugins.far]\ntype = 'snapshot'\naddress = '{}'\ncapabilities = ['remote']\n\
             [proxy_plugins.far.exports]\nroot = '/far'\n",
            socket.display()
        );
        Stage { near: Tared::configured(&config).await, far }
    }

    async fn client(&self) -> Client {
        Client::new(self.near.channel().await)
    }

    /// Names and parents on the other side.
    async fn on_the_far_side(&self) -> Vec<(String, Labels)> {
        let mut client = Client::new(self.far.channel().await);
        list(&mut client, "far", "native").await.into_iter().map(|info| (info.name, info.labels)).collect()
    }
}

async fn list(client: &mut Client, namespace: &str, snapshotter: &str) -> Vec<pb::Info> {
    let request = pb::ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: Vec::new() };
    let mut stream = client.list(within(namespace, request)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        all.extend(piece.info);
    }
    all
}

async fn prepare(client: &mut Client, key: &str, parent: &str, labels: &[(&str, &str)]) -> Result<PathBuf, Status> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (snapshotter, key, parent) = ("far".into(), key.into(), parent.into());
    let request = pb::PrepareSnapshotRequest { snapshotter, key, parent, labels };
    let mounts = client.prepare(within("test", request)).await?.into_inner().mounts;
    Ok(PathBuf::from(&mounts[0].source))
}

async fn commit(client: &mut Client, name: &str, key: &str) -> Result<(), Status> {
    let (snapshotter, name, key) = ("far".into(), name.into(), key.into());
    let request = pb::CommitSnapshotRequest { snapshotter, name, key, ..Default::default() };
    client.commit(within("test", request)).await.map(|_| ())
}

async fn remove(client: &mut Client, key: &str) -> Result<(), Status> {
    let request = pb::RemoveSnapshotRequest { snapshotter: "far".into(), key: key.into() };
    client.remove(within("test", request)).await.map(|_| ())
}

#[tokio::test]
async fn layers_lie_in_the_other_program_and_keys_and_parents_are_ours() {
    let stage = Stage::start().await;
    let mut client = stage.client().await;
    let mut plugins = introspection::introspection_client::IntrospectionClient::new(stage.near.channel().await);
    let asked = introspection::PluginsRequest { filters: vec!["type==io.containerd.snapshotter.v1,id==far".into()] };
    let plugin = plugins.plugins(asked).await.unwrap().into_inner().plugins.remove(0);
    assert_eq!((plugin.capabilities.as_slice(), plugin.exports["root"].as_str()), (&["remote".to_owned()][..], "/far"));

    let layer = prepare(&mut client, "a", "", &[("containerd.io/snapshot/x", "y"), ("mine", "z")]).await.unwrap();
    assert!(layer.starts_with(stage.far.dir.path()), "{}", layer.display());
    std::fs::write(layer.join("file"), "below").unwrap();
    let (name, labels) = stage.on_the_far_side().await.remove(0);
    assert!(name.starts_with("test/") && name.ends_with("/a"), "{name}");
    assert_eq!((labels.get("containerd.io/snapshot/x").map(String::as_str), labels.get("mine")), (Some("y"), None));
    assert_eq!(prepare(&mut client, "a", "", &[]).await.unwrap_err().code(), Code::AlreadyExists);
    commit(&mut client, "base", "a").await.unwrap();
    let upper = prepare(&mut client, "b", "base", &[]).await.unwrap();
    assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "below", "it begins as its parent ended");
    assert_eq!(remove(&mut client, "base").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(prepare(&mut client, "c", "b", &[]).await.unwrap_err().code(), Code::InvalidArgument);
    let usage = pb::UsageRequest { snapshotter: "far".into(), key: "b".into() };
    assert!(client.usage(within("test", usage)).await.unwrap().into_inner().size > 0);
    let mut all: Vec<_> = list(&mut client, "test", "far").await;
    all.sort_by(|one, other| one.name.cmp(&other.name));
    let all: Vec<_> = all.iter().map(|info| (info.name.as_str(), info.parent.as_str(), info.kind())).collect();
    assert_eq!(all, [("b", "base", pb::Kind::Active), ("base", "", pb::Kind::Committed)]);
    let cleanup = pb::CleanupRequest { snapshotter: "far".into() };
    assert_eq!(client.cleanup(within("test", cleanup)).await.unwrap_err().code(), Code::Unimplemented);
    for key in ["b", "base"] {
        remove(&mut client, key).await.unwrap();
    }
    assert!(stage.on_the_far_side().await.is_empty());
}

#[tokio::test]
async fn a_layer_that_the_other_program_has_is_taken_in_and_collected_like_any_other() {
    let stage = Stage::start().await;
    let mut client = stage.client().await;
    let known = [(REFERENCE, "known")];
    let there = prepare(&mut client, "extract", "", &known).await.unwrap_err();
    assert_eq!(there.code(), Code::AlreadyExists, "{there:?}");
    let stat = pb::StatSnapshotRequest { snapshotter: "far".into(), key: "known".into() };
    let info = client.stat(within("test", stat)).await.unwrap().into_inner().info.unwrap();
    assert_eq!((info.kind(), info.labels[REFERENCE].as_str()), (pb::Kind::Committed, "known"));
    let again = prepare(&mut client, "extract", "", &known).await.unwrap_err();
    assert_eq!(again.message(), "target snapshot \"known\": already exists", "it is not asked for twice");
    prepare(&mut client, "on", "known", &[]).await.unwrap();
    assert_eq!(stage.on_the_far_side().await.len(), 2);

    let mut leases = leases::leases_client::LeasesClient::new(stage.near.channel().await);
    let lease = leases::CreateRequest { id: "gone".into(), labels: Labels::new() };
    leases.create(within("test", lease)).await.unwrap();
    leases.delete(within("test", leases::DeleteRequest { id: "gone".into(), sync: true })).await.unwrap();
    assert!(list(&mut client, "test", "far").await.is_empty());
    assert!(stage.on_the_far_side().await.is_empty());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named_and_keeps_nobody_else() {
    let near = Tared::configured("[proxy_plugins.far]\ntype = 'snapshot'\naddress = 'DIR/nobody.sock'\n").await;
    let mut client = Client::new(near.channel().await);
    let status = prepare(&mut client, "a", "", &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().starts_with("far: "), "{status:?}");
    let own = pb::PrepareSnapshotRequest { snapshotter: "overlayfs".into(), key: "a".into(), ..Default::default() };
    client.prepare(within("test", own)).await.unwrap();
    assert!(Path::new(&near.socket()).exists());
}
