//! A container as tarectl keeps it: containerd's row with labels of our own, its task, and a folder for its log.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tare_proto::containerd::services::containers::v1 as pb;
use tare_proto::containerd::services::introspection::v1::PluginsRequest;
use tare_proto::containerd::services::snapshots::v1 as snapshots;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::containerd::types::Mount;
use tare_proto::containerd::v1::types::{Process, Status};

use super::client::{Client, said};
use crate::caretaker;
use crate::networks::Record;

pub use pb::Container;

/// Where a task's output goes. containerd's restart monitor looks for the same under its own name.
pub const LOG: &str = "tare.dev/log";
/// Seconds that `stop` waits.
pub const STOP_TIMEOUT: &str = "tare.dev/stop-timeout";
/// Namespaces of another container that it joins: `pid=NAME,ipc=NAME`.
pub const JOINS: &str = "tare.dev/joins";
/// The signal that `stop` sends: the name that containerd's clients share.
pub const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
/// The name of the network that it is on, as the user gave it.
pub const NETWORK: &str = "tare.dev/network";
/// Its published ports, as `ps` shows them.
pub const PORTS: &str = "tare.dev/ports";
/// Labels of containerd's restart monitor.
pub const RESTART_STATUS: &str = "containerd.io/restart.status";
pub const RESTART_POLICY: &str = "containerd.io/restart.policy";
pub const RESTART_LOG: &str = "containerd.io/restart.loguri";
pub const RESTART_STOPPED: &str = "containerd.io/restart.explicitly-stopped";

/// The container of that name, or the only one whose name begins so.
pub async fn find(client: &Client, name: &str) -> Result<Container> {
    let request = client.request(pb::GetContainerRequest { id: name.into() });
    match client.containers().get(request).await {
        Ok(found) => return found.into_inner().container.with_context(|| format!("no such container: {name}")),
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => return Err(said(status)),
    }
    let mut alike = list(client).await?;
    alike.retain(|container| container.id.starts_with(name));
    match (alike.pop(), alike.is_empty()) {
        (Some(container), true) => Ok(container),
        (None, _) => bail!("no such container: {name}"),
        (Some(_), false) => bail!("{name}: more than one container's name begins so"),
    }
}

pub async fn list(client: &Client) -> Result<Vec<Container>> {
    let request = client.request(pb::ListContainersRequest::default());
    Ok(client.containers().list(request).await.map_err(said)?.into_inner().containers)
}

/// Writes a container's labels back.
pub async fn save_labels(client: &Client, container: &Container) -> Result<()> {
    let mask = prost_types::FieldMask { paths: vec!["labels".into()] };
    let request = pb::UpdateContainerRequest { container: Some(container.clone()), update_mask: Some(mask) };
    client.containers().update(client.request(request)).await.map_err(said)?;
    Ok(())
}

/// docker's `NetworkSettings`.
pub fn network_settings(container: &Container, folder: &Folder) -> Result<Value> {
    let name = container.labels.get(NETWORK).map_or("none", String::as_str);
    let Some(record) = Record::load(folder.path())? else {
        return Ok(json!({"IPAddress": "", "Ports": {}, "Networks": {name: {"IPAddress": ""}}}));
    };
    let address = record.addresses.first().map(ToString::to_string).unwrap_or_default();
    let mut ports = serde_json::Map::new();
    for port in &record.ports {
        let of_host = json!({"HostIp": port.address.map_or("0.0.0.0".into(), |address| address.to_string()),
            "HostPort": port.host.to_string()});
        let list = ports.entry(format!("{}/{}", port.container, port.protocol)).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(of_host);
        }
    }
    Ok(json!({"IPAddress": address, "Ports": ports, "SandboxKey": record.netns,
        "Networks": {name: {"IPAddress": address, "Aliases": record.aliases}}}))
}

/// The container's specification.
pub fn spec(container: &Container) -> Result<Value> {
    let spec = container.spec.as_ref().map_or(&[][..], |spec| spec.value.as_slice());
    serde_json::from_slice(spec).with_context(|| format!("reading the specification of {}", container.id))
}

/// The first process of its task, if it has one.
pub async fn process(client: &Client, id: &str) -> Result<Option<Process>> {
    let get = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    match client.tasks().get(client.request(get)).await {
        Ok(found) => Ok(found.into_inner().process),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(said(status)),
    }
}

/// The first process of each task.
pub async fn processes(client: &Client) -> Result<HashMap<String, Process>> {
    let request = client.request(tasks::ListTasksRequest::default());
    let listed = client.tasks().list(request).await.map_err(said)?.into_inner();
    Ok(listed.tasks.into_iter().map(|process| (process.id.clone(), process)).collect())
}

/// docker's word for its state.
pub fn word(process: Option<&Process>) -> &'static str {
    match process.map(Process::status) {
        None | Some(Status::Created) => "created",
        Some(Status::Running) => "running",
        Some(Status::Stopped) => "exited",
        Some(Status::Paused | Status::Pausing) => "paused",
        Some(Status::Unknown) => "dead",
    }
}

/// Whether there is a process that can be signalled or entered.
pub fn is_live(process: Option<&Process>) -> bool {
    matches!(word(process), "running" | "paused")
}

/// The pid of a container that runs.
pub async fn running(client: &Client, id: &str) -> Result<u32> {
    match process(client, id).await? {
        Some(process) if is_live(Some(&process)) => Ok(process.pid),
        _ => bail!("container {id} is not running"),
    }
}

/// The mounts of its root file system.
pub async fn mounts(client: &Client, container: &Container) -> Result<Vec<Mount>> {
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    let request = client.request(snapshots::MountsRequest { snapshotter, key });
    Ok(client.snapshots().mounts(request).await.map_err(said)?.into_inner().mounts)
}

/// The folder that belongs to a container, and goes with it: the daemon sees to that.
pub struct Folder(PathBuf);

impl Folder {
    /// Where the container's folder is, made or not.
    pub async fn of(client: &Client, id: &str) -> Result<Folder> {
        let filters = vec![format!("type=={:?}", caretaker::PLUGIN)];
        let answer = client.introspection().plugins(client.request(PluginsRequest { filters })).await.map_err(said)?;
        let plugin = answer.into_inner().plugins.pop();
        let root = plugin.and_then(|mut plugin| plugin.exports.remove("root"));
        let root = root.with_context(|| format!("the daemon at {} is not tared", client.address))?;
        Ok(Folder(Path::new(&root).join(&client.namespace).join(id)))
    }

    pub fn make(&self) -> Result<()> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.0);
        made.with_context(|| format!("making {}", self.0.display()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The fifo that is the container's input.
    pub fn input(&self) -> PathBuf {
        self.0.join("stdin")
    }

    pub fn make_input(&self) -> Result<()> {
        let path = self.input();
        match mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
            Err(errno) if errno != rustix::io::Errno::EXIST => {
                Err(errno).with_context(|| format!("making {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The address of the log for the shim: it starts this program, which is there as long as tarectl is installed.
    pub fn log_uri(&self) -> Result<String> {
        let program = std::env::current_exe().context("looking for this program")?;
        Ok(format!("binary://{}?logger={}", escaped(&program), escaped(&self.log())))
    }
}

/// Percent-encoding, as paths in addresses have it.
fn escaped(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Makes a container's task; its program waits for the start.
pub async fn create_task(client: &Client, container: &Container) -> Result<()> {
    let folder = Folder::of(client, &container.id).await?;
    let terminal = spec(container)?["process"]["terminal"] == true;
    let log = container.labels.get(LOG).cloned().unwrap_or_default();
    let input = folder.input();
    let request = tasks::CreateTaskRequest {
        container_id: container.id.clone(),
        rootfs: mounts(client, container).await?,
        stdin: if input.exists() { input.to_string_lossy().into_owned() } else { String::new() },
        stdout: log.clone(),
        stderr: if terminal { String::new() } else { log },
        terminal,
        ..tasks::CreateTaskRequest::default()
    };
    client.tasks().create(client.request(request)).await.map_err(not_started)?;
    // Only now, or the daemon could be faster than we and start it itself.
    if container.labels.contains_key(RESTART_POLICY) {
        let mut container = container.clone();
        container.labels.insert(RESTART_STOPPED.into(), "false".into());
        container.labels.insert(RESTART_STATUS.into(), "running".into());
        save_labels(client, &container).await?;
    }
    Ok(())
}

/// Lets a created program run.
pub async fn start_task(client: &Client, id: &str, exec: &str) -> Result<()> {
    let start = tasks::StartRequest { container_id: id.into(), exec_id: exec.into() };
    client.tasks().start(client.request(start)).await.map_err(not_started)?;
    Ok(())
}

/// Removes a task that has ended.
pub async fn delete_task(client: &Client, id: &str) -> Result<()> {
    let request = tasks::DeleteTaskRequest { container_id: id.into() };
    match client.tasks().delete(client.request(request)).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        answer => answer.map(drop).map_err(said),
    }
}

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Coded {
    pub code: i32,
    pub sentence: String,
}

/// docker's exit codes for a program that cannot be started: 127 if it is not there, 126 if it cannot be executed.
fn not_started(status: tonic::Status) -> anyhow::Error {
    let text = status.message();
    let code = if text.contains("executable file not found") || text.contains("no such file or directory") {
        127
    } else if ["permission denied", "is a directory", "exec format error"].iter().any(|words| text.contains(words)) {
        126
    } else {
        return said(status);
    };
    Coded { code, sentence: text.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_started_has_its_exit_code() {
        let code = |text: &str| not_started(tonic::Status::unknown(text)).downcast_ref::<Coded>().map(|it| it.code);
        assert_eq!(code("exec: \"nope\": executable file not found in $PATH"), Some(127));
        assert_eq!(code("exec /etc/passwd: permission denied"), Some(126));
        assert_eq!(code("linux.sysctl.x: is not in a namespace of its own"), None);
    }

    #[test]
    fn a_path_in_an_address_has_no_special_characters() {
        assert_eq!(escaped(Path::new("/a b/c?d=%")), "/a%20b/c%3Fd%3D%25");
    }
}
