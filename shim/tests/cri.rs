//! A pod without a pause image under stock containerd: its CRI, configured with `sandboxer = "shim"`, drives the shim.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tare_integration::inventory::Inventory;
use tare_integration::{image, programs};
use tare_proto::runtime::v1 as cri;
use tare_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

const IMAGE: &str = "localhost/busybox:latest";

/// A network plugin that gives every pod the same address, and configures nothing.
const PLUGIN: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],'\
'"ips":[{"address":"10.88.0.5/16","interface":0}]}' ;;
esac
"#;

/// A private containerd with CRI; gone when dropped.
struct Node {
    daemon: Child,
    dir: TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::Builder::new().prefix("tare-cri.").tempdir().unwrap();
        let at = dir.path().display();
        let (plugins, settings) = (dir.path().join("cni/bin"), dir.path().join("cni/net.d"));
        fs::create_dir_all(&plugins).unwrap();
        fs::create_dir_all(&settings).unwrap();
        for name in ["fixed", "loopback"] {
            let plugin = plugins.join(name);
            fs::write(&plugin, PLUGIN).unwrap();
            fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let network = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "fixed"}]});
        fs::write(settings.join("n.conflist"), network.to_string()).unwrap();
        let config = format!(
            "version = 3\nroot = '{at}/root'\nstate = '{at}/state'\n\
             [grpc]\naddress = '{at}/d.sock'\n[ttrpc]\naddress = '{at}/d.sock.ttrpc'\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{IMAGE}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\nnetns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = '{}'\nconf_dir = '{}'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'tare'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.tare]\n\
             runtime_type = 'io.containerd.tare.v2'\nsandboxer = 'shim'\n",
            plugins.display(),
            settings.display(),
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let daemon = launch(dir.path());
        let mut node = Node { daemon, dir };
        node.wait();
        let archive = node.dir.path().join("image.tar");
        fs::write(&archive, image::busybox().unwrap().archive(IMAGE).unwrap()).unwrap();
        let mut ctr = Command::new(programs::peer("newer", "ctr").unwrap());
        ctr.arg("--address").arg(node.socket()).args(["-n", "k8s.io", "image", "import"]).arg(archive);
        assert!(ctr.output().unwrap().status.success());
        node
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    fn wait(&mut self) {
        let limit = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.socket()).is_err() {
            assert!(self.daemon.try_wait().unwrap().is_none() && Instant::now() < limit, "{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the daemon as a crash would, and starts it again.
    fn crash_and_restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = launch(self.dir.path());
        self.wait();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn client(&self) -> RuntimeServiceClient<Channel> {
        let path = self.socket();
        let connect = move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        };
        let channel =
            Endpoint::from_static("http://cri").connect_with_connector(tower::service_fn(connect)).await.unwrap();
        let mut client = RuntimeServiceClient::new(channel);
        // The socket is there before the plugins are.
        while client.version(cri::VersionRequest::default()).await.is_err() {}
        client
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn launch(dir: &Path) -> Child {
    let containerd = programs::peer("newer", "containerd").unwrap();
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let system = std::env::var_os("PATH").unwrap_or_default();
    let mut path = vec![programs::installed()];
    path.extend(std::env::split_paths(&system));
    Command::new(containerd)
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", std::env::join_paths(path).unwrap())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn namespace(pid: impl std::fmt::Display, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

fn pid(info: &std::collections::HashMap<String, String>) -> u64 {
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_u64().unwrap()
}

fn pod(name: &str, logs: &Path) -> cri::PodSandboxConfig {
    let metadata =
        cri::PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "default".into(), attempt: 0 };
    cri::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.into(),
        log_directory: logs.display().to_string(),
        linux: Some(cri::LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

fn container(command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: command.iter().map(|word| (*word).into()).collect(),
        log_path: "c.log".into(),
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

#[test]
fn stock_containerd_runs_a_pod_without_a_pause_image_and_its_containers_are_in_it() {
    let mut node = Node::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let logs = node.dir.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let mut client = node.client().await;
        let config = pod("a-pod", &logs);
        let run = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = match client.run_pod_sandbox(run).await {
            Ok(answer) => answer.into_inner().pod_sandbox_id,
            Err(status) => panic!("{}\n{}", status.message(), node.log()),
        };
        let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let status = client.pod_sandbox_status(ask.clone()).await.unwrap().into_inner();
        assert_eq!(status.status.as_ref().unwrap().state(), cri::PodSandboxState::SandboxReady);
        let sandbox = pid(&status.info);
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container(&["sh", "-c", "echo logged; exec sleep 1000"])),
            sandbox_config: Some(config),
        };
        let container_id = match client.create_container(create).await {
            Ok(answer) => answer.into_inner().container_id,
            Err(status) => panic!("{}\n{}", status.message(), node.log()),
        };
        let start = cri::StartContainerRequest { container_id: container_id.clone() };
        if let Err(status) = client.start_container(start).await {
            panic!("{}\n{}", status.message(), node.log());
        }
        let ask_container = cri::ContainerStatusRequest { container_id: container_id.clone(), verbose: true };
        let inside = pid(&client.container_status(ask_container).await.unwrap().into_inner().info);
        for kind in ["ipc", "uts", "net"] {
            assert_eq!(namespace(inside, kind), namespace(sandbox, kind), "{kind}");
            assert_ne!(namespace(inside, kind), namespace("self", kind), "{kind}");
        }
        // The default is POD: one PID namespace for all, whose first process is the pod's init.
        assert_eq!(namespace(inside, "pid"), namespace(sandbox, "pid"));
        assert_ne!(namespace(inside, "mnt"), namespace(sandbox, "mnt"));
        let exec = cri::ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["sh".into(), "-c".into(), "hostname; exit 3".into()],
            timeout: 20,
        };
        let said = client.exec_sync(exec).await.unwrap().into_inner();
        assert_eq!((said.exit_code, String::from_utf8_lossy(&said.stdout).as_ref()), (3, "a-pod\n"));

        node.crash_and_restart();
        let mut client = node.client().await;
        let status = client.pod_sandbox_status(ask).await.unwrap().into_inner();
        assert_eq!(status.status.as_ref().unwrap().state(), cri::PodSandboxState::SandboxReady, "{}", node.log());
        assert_eq!(pid(&status.info), sandbox);
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        if let Err(status) = client.stop_pod_sandbox(stop).await {
            panic!("{}\n{}", status.message(), node.log());
        }
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
        if let Err(status) = client.remove_pod_sandbox(remove).await {
            panic!("{}\n{}", status.message(), node.log());
        }
        let list = client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap().into_inner();
        assert!(list.items.is_empty());
        assert!(fs::read_to_string(logs.join("c.log")).unwrap().ends_with(" stdout F logged\n"));
    });
    let private = node.dir.path().display().to_string();
    node.daemon.kill().unwrap();
    node.daemon.wait().unwrap();
    Inventory::expect_none(&[&private]);
}
