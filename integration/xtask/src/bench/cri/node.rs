//! A daemon with CRI and a network of its own, and the calls of a kubelet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{apart, programs, registry::Registry};
use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::image_service_client::ImageServiceClient;
use tare_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use crate::bench::manager::connect;
use crate::sh;

const LARGEST_MESSAGE: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub daemon: Daemon,
    client: Client,
    _netns: Netns,
}

/// What calls need. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    pub name: &'static str,
    pub dir: PathBuf,
    pub client: RuntimeServiceClient<Channel>,
    image: String,
    /// Above the cgroups of its pods, and in the name of its network namespace.
    mark: String,
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
    pub async fn start(name: &'static str, kind: Kind, dir: &Path, registry: &Registry) -> Result<Node> {
        let dir = dir.join(name);
        let plugins = network(&dir)?;
        let mark = format!("tarebench-{}-{name}", std::process::id());
        let netns = Netns::make(&mark)?;
        fs::write(dir.join("netns"), &mark)?; // where the daemon starts
        let networks = dir.join("net.d");
        let config = match kind {
            Kind::Tared => format!("[cri.cni]\nconf_dir = {networks:?}\nbin_dirs = [{plugins:?}]\n"),
            Kind::Containerd(tree) => {
                let runc = programs::peer(tree, "runc")?;
                containerd(&dir, &networks, &plugins, &runc, &registry.reference("pause:latest"))
            }
        };
        fs::write(dir.join("config.toml"), config)?;
        let daemon = Daemon::start(kind, &dir)?;
        let channel = connect(daemon.socket()).await?;
        let mut client = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        let limit = Instant::now() + PATIENCE;
        // The peer's socket is there before its plugins are.
        while client.version(pb::VersionRequest::default()).await.is_err() {
            ensure!(Instant::now() < limit, "{name} does not serve CRI:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut images = ImageServiceClient::new(channel);
        let image = registry.reference("busybox:latest");
        for name in [&image, &registry.reference("pause:latest")] {
            // Release 1.6 fetches by itself: the daemon is where no registry is.
            sh::output(daemon.ctr("bookworm")?.args(["-n", "k8s.io", "image", "pull", "--plain-http", name]))?;
            let spec = Some(pb::ImageSpec { image: name.clone(), ..pb::ImageSpec::default() });
            let request = pb::ImageStatusRequest { image: spec, verbose: false };
            while images.image_status(request.clone()).await?.into_inner().image.is_none() {
                ensure!(Instant::now() < limit, "{name} is not seen by CRI:\n{}", daemon.log());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(Node { daemon, client: Client { name, dir, client, image, mark }, _netns: netns })
    }

    /// Another one on the same connection.
    pub fn share(&self) -> Client {
        self.client.clone()
    }
}

impl Client {
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// A pod with an address of its own.
    pub fn pod(&self, name: &str) -> pb::PodSandboxConfig {
        let linux = pb::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", self.mark),
            security_context: Some(pb::LinuxSandboxSecurityContext {
                namespace_options: Some(pb::NamespaceOption::default()),
                ..pb::LinuxSandboxSecurityContext::default()
            }),
            ..pb::LinuxPodSandboxConfig::default()
        };
        let metadata = pb::PodSandboxMetadata {
            name: name.into(),
            uid: format!("{}-{name}", self.mark),
            namespace: "bench".into(),
            attempt: 0,
        };
        pb::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: self.dir.join("logs").display().to_string(),
            labels: [("io.kubernetes.pod.name".to_owned(), name.to_owned())].into(),
            linux: Some(linux),
            ..pb::PodSandboxConfig::default()
        }
    }

    pub async fn run(&mut self, name: &str) -> Result<String> {
        let config = Some(self.pod(name));
        let request = pb::RunPodSandboxRequest { config, ..pb::RunPodSandboxRequest::default() };
        let answer = self.client.run_pod_sandbox(request).await;
        Ok(answer.with_context(|| format!("{}: RunPodSandbox", self.name))?.into_inner().pod_sandbox_id)
    }

    pub async fn create(&mut self, pod: &str, name: &str, command: &str) -> Result<String> {
        self.create_with(pod, name, command, None).await
    }

    /// A container that finds `lines`, if there is one, at `/lines`.
    pub async fn create_with(&mut self, pod: &str, name: &str, command: &str, lines: Option<&Path>) -> Result<String> {
        let mount = |path: &Path| pb::Mount {
            container_path: "/lines".into(),
            host_path: path.display().to_string(),
            readonly: true,
            ..pb::Mount::default()
        };
        let config = pb::ContainerConfig {
            metadata: Some(pb::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(pb::ImageSpec { image: self.image.clone(), ..pb::ImageSpec::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), command.into()],
            log_path: format!("{name}.log"),
            mounts: lines.map(mount).into_iter().collect(),
            ..pb::ContainerConfig::default()
        };
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(self.pod(name)),
        };
        let answer = self.client.create_container(request).await;
        Ok(answer.with_context(|| format!("{}: CreateContainer", self.name))?.into_inner().container_id)
    }

    pub async fn start_container(&mut self, id: &str) -> Result<()> {
        let request = pb::StartContainerRequest { container_id: id.into() };
        let answer = self.client.start_container(request).await;
        answer.map(drop).with_context(|| format!("{}: StartContainer", self.name))
    }

    /// Returns when the log has something in it.
    pub fn first_line(&self, name: &str) -> Result<()> {
        let (log, limit) = (self.log(name), Instant::now() + PATIENCE);
        while !fs::metadata(&log).is_ok_and(|meta| meta.len() > 0) {
            ensure!(Instant::now() < limit, "{} stays empty", log.display());
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    pub async fn exec(&mut self, id: &str) -> Result<()> {
        let request = pb::ExecSyncRequest { container_id: id.into(), cmd: vec!["/bin/true".into()], timeout: 10 };
        let answer = self.client.exec_sync(request).await.with_context(|| format!("{}: ExecSync", self.name))?;
        ensure!(answer.into_inner().exit_code == 0, "{}: true fails", self.name);
        Ok(())
    }

    /// Returns when the container has ended by itself.
    pub async fn ended(&mut self, id: &str) -> Result<()> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let request = pb::ContainerStatusRequest { container_id: id.into(), verbose: false };
            let status = self.client.container_status(request).await?.into_inner().status.unwrap_or_default();
            if status.state() == pb::ContainerState::ContainerExited {
                return Ok(());
            }
            ensure!(Instant::now() < limit, "{}: a container does not end", self.name);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn stop_container(&mut self, id: &str) -> Result<()> {
        let request = pb::StopContainerRequest { container_id: id.into(), timeout: 0 };
        let answer = self.client.stop_container(request).await;
        answer.map(drop).with_context(|| format!("{}: StopContainer", self.name))
    }

    pub async fn remove_container(&mut self, id: &str) -> Result<()> {
        let request = pb::RemoveContainerRequest { container_id: id.into() };
        let answer = self.client.remove_container(request).await;
        answer.map(drop).with_context(|| format!("{}: RemoveContainer", self.name))
    }

    pub async fn stop(&mut self, pod: &str) -> Result<()> {
        let request = pb::StopPodSandboxRequest { pod_sandbox_id: pod.into() };
        let answer = self.client.stop_pod_sandbox(request).await;
        answer.map(drop).with_context(|| format!("{}: StopPodSandbox", self.name))
    }

    pub async fn remove(&mut self, pod: &str) -> Result<()> {
        let request = pb::RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
        let answer = self.client.remove_pod_sandbox(request).await;
        answer.map(drop).with_context(|| format!("{}: RemovePodSandbox", self.name))
    }

    /// Leaves no pod.
    pub async fn clear(&mut self) -> Result<()> {
        let pods = self.client.list_pod_sandbox(pb::ListPodSandboxRequest::default()).await?.into_inner().items;
        for pod in pods {
            self.stop(&pod.id).await?;
            self.remove(&pod.id).await?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        apart::remove_cgroup(&self.client.mark);
    }
}

/// Writes the network that both have; returns the folder of its plugins.
fn network(dir: &Path) -> Result<PathBuf> {
    let networks = dir.join("net.d");
    fs::create_dir_all(&networks)?;
    let ranges = json!([[{"subnet": "10.88.0.0/16"}]]);
    let ipam =
        json!({"type": "host-local", "dataDir": dir.join("ipam"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]});
    let bridge = json!({"type": "bridge", "bridge": "bench0", "isGateway": true, "ipam": ipam});
    let list = json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [bridge]});
    fs::write(networks.join("10-bench.conflist"), list.to_string())?;
    let bridge = programs::peer("network", "bridge")?;
    Ok(bridge.parent().context("a plugin lies in a folder")?.to_owned())
}

fn containerd(dir: &Path, networks: &Path, plugins: &Path, runc: &Path, pause: &str) -> String {
    let at = dir.display();
    format!(
        "version = 3\nroot = '{at}/root'\nstate = '{at}/state'\n\
         [grpc]\naddress = '{at}/d.sock'\n[ttrpc]\naddress = '{at}/d.sock.ttrpc'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'io.containerd.cri.v1.runtime']\nnetns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = {plugins:?}\nconf_dir = {networks:?}\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = {runc:?}\n"
    )
}

/// A network namespace for a daemon, whose bridge is in nobody's way.
struct Netns(String);

impl Netns {
    fn make(name: &str) -> Result<Netns> {
        sh::run(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Netns(name.to_owned());
        sh::run(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]))?;
        Ok(netns)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}
