//! A node: tared with a registry that holds `busybox:latest`, and what a kubelet would send.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::{image, registry::Registry};
use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::image_service_client::ImageServiceClient;
use tare_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Uri};

/// What a client has of a node; [`Node`] has the daemon too.
pub struct Client {
    pub client: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub image: String,
    /// An image of two layers, with a file each.
    pub two: String,
    /// Part of every name here, so that what is left behind is found.
    pub mark: String,
    logs: PathBuf,
    log: PathBuf,
}

pub struct Node {
    pub daemon: Daemon,
    pub dir: TempDir,
    client: Client,
    /// Reached by the daemon only where the test itself is.
    pub registry: Registry,
}

impl std::ops::Deref for Node {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Node {
    pub async fn start() -> Node {
        Node::with("").await
    }

    /// With more lines for the configuration file.
    pub async fn with(config: &str) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-cri.").tempdir().unwrap();
        Node::at(dir, config).await
    }

    pub async fn at(dir: TempDir, config: &str) -> Node {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let registry = Registry::start(dir.path()).unwrap();
        registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
        registry.push("two", "latest", &two_layers()).unwrap();
        if !config.is_empty() {
            std::fs::write(dir.path().join("config.toml"), config).unwrap();
        }
        let daemon = Daemon::start(Kind::Tared, dir.path()).unwrap();
        let image = registry.reference("busybox:latest");
        // Release 1.6 fetches by itself: the daemon may be where no registry is.
        let two = registry.reference("two:latest");
        for image in [&image, &two] {
            let pull = ["-n", "k8s.io", "image", "pull", "--plain-http", image];
            let pulled = daemon.ctr("bookworm").unwrap().args(pull).output().unwrap();
            assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
        }
        let mark = format!("tarecri{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (client, images) = connect(daemon.socket()).await;
        let (logs, log) = (dir.path().join("logs"), dir.path().join("log"));
        Node { daemon, client: Client { client, images, image, two, mark, logs, log }, dir, registry }
    }

    pub async fn crash_and_restart(&mut self) {
        self.daemon.crash_and_restart().unwrap();
        (self.client.client, self.client.images) = connect(self.daemon.socket()).await;
    }

    /// Ends the daemon, and checks that nothing of the node is left.
    pub fn end(self) {
        let (private, mark) = (self.dir.path().display().to_string(), self.client.mark.clone());
        for folder in ["state/io.containerd.grpc.v1.cri", "root/io.containerd.grpc.v1.cri"] {
            for kind in ["sandboxes", "containers"] {
                assert_eq!(entries(&self.dir.path().join(folder).join(kind)), 0, "{folder}/{kind}");
            }
        }
        for bundles in ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"] {
            assert_eq!(entries(&self.dir.path().join("state").join(bundles).join("k8s.io")), 0, "{bundles}");
        }
        drop(self.daemon);
        drop(self.registry);
        cgroups_of_the_kubelet(&mark);
        Inventory::expect_none(&[&private, &mark]);
    }
}

impl Client {
    /// A pod in the host's network: it needs no plugins.
    pub fn pod(&self, name: &str) -> pb::PodSandboxConfig {
        let options = pb::NamespaceOption { network: pb::NamespaceMode::Node.into(), ..Default::default() };
        let security = pb::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = pb::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", self.mark),
            security_context: Some(security),
            ..Default::default()
        };
        let metadata = pb::PodSandboxMetadata {
            name: name.into(),
            uid: format!("{}-{name}", self.mark),
            namespace: "ns".into(),
            attempt: 0,
        };
        pb::PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.logs.display().to_string(),
            labels: HashMap::from([("app".into(), name.into())]),
            annotations: HashMap::from([("note".into(), "x".into())]),
            linux: Some(linux),
            ..Default::default()
        }
    }

    pub fn container(&self, name: &str, command: &str) -> pb::ContainerConfig {
        pb::ContainerConfig {
            metadata: Some(pb::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(pb::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), command.into()],
            labels: HashMap::from([("part".into(), name.into())]),
            ..Default::default()
        }
    }

    /// Another one on the same connection.
    pub fn share(&self) -> Client {
        Client {
            client: self.client.clone(),
            images: self.images.clone(),
            image: self.image.clone(),
            two: self.two.clone(),
            mark: self.mark.clone(),
            logs: self.logs.clone(),
            log: self.log.clone(),
        }
    }

    /// The daemon's log.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn logs(&self) -> PathBuf {
        self.logs.clone()
    }

    pub async fn run(&mut self, config: pb::PodSandboxConfig) -> String {
        let request = pb::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer = self.client.run_pod_sandbox(request).await;
        answer.unwrap_or_else(|error| panic!("{error}\n{}", self.said())).into_inner().pod_sandbox_id
    }

    pub async fn create(&mut self, pod: &str, config: pb::ContainerConfig) -> Result<String, tonic::Status> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(pb::PodSandboxConfig::default()),
        };
        Ok(self.client.create_container(request).await?.into_inner().container_id)
    }

    pub async fn start_container(&mut self, id: &str) {
        let started = self.client.start_container(pb::StartContainerRequest { container_id: id.into() }).await;
        started.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
    }

    /// Created and started.
    pub async fn running(&mut self, pod: &str, config: pb::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.start_container(&id).await;
        id
    }

    pub async fn exec(
        &mut self,
        container: &str,
        command: &str,
        timeout: i64,
    ) -> Result<pb::ExecSyncResponse, tonic::Status> {
        let cmd = vec!["/bin/sh".into(), "-c".into(), command.into()];
        let request = pb::ExecSyncRequest { container_id: container.into(), cmd, timeout };
        Ok(self.client.exec_sync(request).await?.into_inner())
    }

    /// What a command in a container prints; it must succeed.
    pub async fn prints(&mut self, container: &str, command: &str) -> String {
        let said = self.exec(container, command, 10).await.unwrap();
        assert_eq!((said.exit_code, String::from_utf8_lossy(&said.stderr).as_ref()), (0, ""), "{command}");
        String::from_utf8(said.stdout).unwrap()
    }

    pub async fn status(&mut self, id: &str) -> pb::ContainerStatus {
        let request = pb::ContainerStatusRequest { container_id: id.into(), verbose: true };
        self.client.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Of a container's first process, as the host counts.
    pub async fn pid(&mut self, id: &str) -> u64 {
        let request = pb::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.client.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["pid"].as_u64().unwrap()
    }

    pub async fn pod_status(&mut self, id: &str) -> pb::PodSandboxStatus {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        self.client.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits for the container's end.
    pub async fn ended(&mut self, id: &str) -> pb::ContainerStatus {
        for _ in 0..2000 {
            let status = self.status(id).await;
            if status.state() == pb::ContainerState::ContainerExited {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("container {id} does not end:\n{}", self.said());
    }

    pub async fn stop_container(&mut self, id: &str, timeout: i64) {
        let request = pb::StopContainerRequest { container_id: id.into(), timeout };
        self.client.stop_container(request).await.unwrap();
    }

    pub async fn remove_container(&mut self, id: &str) {
        self.client.remove_container(pb::RemoveContainerRequest { container_id: id.into() }).await.unwrap();
    }

    pub async fn stop(&mut self, pod: &str) {
        let stopped = self.client.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: pod.into() }).await;
        stopped.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
    }

    pub async fn remove(&mut self, pod: &str) {
        let removed = self.client.remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: pod.into() }).await;
        removed.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
    }

    pub async fn pods(&mut self) -> Vec<pb::PodSandbox> {
        self.client.list_pod_sandbox(pb::ListPodSandboxRequest::default()).await.unwrap().into_inner().items
    }

    pub async fn containers(&mut self, filter: pb::ContainerFilter) -> Vec<pb::Container> {
        let request = pb::ListContainersRequest { filter: Some(filter) };
        self.client.list_containers(request).await.unwrap().into_inner().containers
    }
}

fn two_layers() -> image::Image {
    let (mut low, mut top) = (image::Layer::default(), image::Layer::default());
    low.file("low", 0o644, b"low\n").unwrap();
    top.file("top", 0o644, b"top\n").unwrap();
    image::Image::of(vec![low, top], &serde_json::json!({})).unwrap()
}

/// The pods' parent is the kubelet's to make and remove.
fn cgroups_of_the_kubelet(mark: &str) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(mark)); // it is not in each, and one that is not empty is found
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

async fn connect(socket: PathBuf) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://tared").connect_with_connector(tower::service_fn(connect)).await;
    let channel = channel.unwrap();
    (RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20), ImageServiceClient::new(channel))
}
