//! `tarectl run`: an image to a running container.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use prost_types::Any;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::snapshots::v1 as snapshots;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::containerd::types::Mount;

use super::client::{Client, said};
use super::{images, io, size};
use crate::oci::{Asked, ImageConfig, Volume, spec};
use crate::snapshot::OVERLAY;

const RUNTIME: &str = "io.containerd.tare.v2";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The container's label that tells where its output goes.
pub const LOG: &str = "tare.dev/log";

#[derive(clap::Args)]
pub struct Args {
    /// Leave the container running and print its name
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
    /// The container's name
    #[arg(long)]
    name: Option<String>,
    /// Set a variable: NAME=VALUE, or NAME alone to pass ours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The working folder
    #[arg(short, long)]
    workdir: Option<String>,
    /// USER[:GROUP], by name or number
    #[arg(short, long)]
    user: Option<String>,
    /// Mount a folder of the host: SOURCE:TARGET[:ro]
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// The most memory, such as 64m or 1g
    #[arg(short, long, value_parser = size::parse)]
    memory: Option<i64>,
    /// The most processor time, such as 1.5
    #[arg(long)]
    cpus: Option<f64>,
    /// The most processes
    #[arg(long)]
    pids_limit: Option<i64>,
    /// Mount a file system in memory: TARGET[:OPTIONS]
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    #[arg(long)]
    hostname: Option<String>,
    /// Run this instead of the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// All capabilities, no seccomp filter, nothing masked
    #[arg(long)]
    privileged: bool,
    /// `host` shares the host's network, `none` has a loopback interface alone
    #[arg(long, default_value = "none")]
    net: Network,
    image: String,
    /// The command, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Host,
    None,
}

pub async fn run(client: &Client, args: Args) -> Result<i32> {
    ensure!(!(args.detach && args.rm), "--detach and --rm together are not supported yet: remove it with `tarectl rm`");
    ensure!(!(args.detach && args.tty), "--detach and --tty together are not supported yet");
    let id = args.name.clone().unwrap_or_else(random_name);
    let image = images::find_or_pull(client, &args.image).await?;
    let made = create(client, &args, &id, &image).await;
    let log = match made {
        Ok(log) => log,
        Err(error) => {
            remove_parts(client, &id).await; // the error on its way matters more
            return Err(error);
        }
    };
    if args.detach {
        start_detached(client, &id, &log).await?;
        println!("{id}");
        return Ok(0);
    }
    let ended = run_in_foreground(client, &args, &id).await;
    if args.rm || ended.is_err() {
        super::containers::remove(client, &id, true).await?;
    }
    ended
}

/// Twelve hexadecimal digits from the clock and our pid: enough not to meet another one on this machine.
fn random_name() -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{:012x}", (nanos ^ (u128::from(std::process::id()) << 24)) & 0xffff_ffff_ffff)
}

/// Makes the snapshot and the container; gives the address of its log.
async fn create(client: &Client, args: &Args, id: &str, image: &images::Local) -> Result<String> {
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: OVERLAY.into(),
        key: id.into(),
        parent: image.chain.clone(),
        ..snapshots::PrepareSnapshotRequest::default()
    };
    let mounts = client.snapshots().prepare(client.request(prepare)).await.map_err(said)?.into_inner().mounts;
    let config = ImageConfig::read(&image.config)?;
    let asked = asked(client, args, id)?;
    let spec = with_users(&mounts, |rootfs| spec(&config, &asked, rootfs).map_err(anyhow::Error::from))?;
    let log = format!("file://{}", log_file(client, id).display());
    let container = containers::Container {
        id: id.into(),
        labels: [(LOG.to_owned(), log.clone())].into(),
        image: image.name.clone(),
        runtime: Some(containers::container::Runtime { name: RUNTIME.into(), options: None }),
        spec: Some(Any { type_url: SPEC.into(), value: spec.to_string().into_bytes() }),
        snapshotter: OVERLAY.into(),
        snapshot_key: id.into(),
        ..containers::Container::default()
    };
    let request = containers::CreateContainerRequest { container: Some(container) };
    client.containers().create(client.request(request)).await.map_err(said)?;
    Ok(log)
}

/// Where a detached container's output goes: beside the daemon's socket, which is as private and as lasting as the containers.
fn log_file(client: &Client, id: &str) -> PathBuf {
    let folder = Path::new(&client.address).parent().unwrap_or(Path::new("/run/tared"));
    folder.join("logs").join(&client.namespace).join(format!("{id}.log"))
}

fn asked(client: &Client, args: &Args, id: &str) -> Result<Asked> {
    let volumes = args.volume.iter().map(|text| volume(text)).collect::<Result<Vec<_>>>()?;
    Ok(Asked {
        args: args.command.clone(),
        entrypoint: args.entrypoint.clone(),
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        hostname: Some(args.hostname.clone().unwrap_or_else(|| id.chars().take(63).collect())),
        terminal: args.tty,
        read_only: args.read_only,
        privileged: args.privileged,
        host_network: args.net == Network::Host,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        volumes,
        tmpfs: args.tmpfs.clone(),
        memory: args.memory,
        millicpus: args.cpus.map(|cpus| (cpus * 1000.0) as i64),
        pids: args.pids_limit,
        // One folder, so that none is left above it when the container is gone.
        cgroups_path: format!("/tare-{}-{id}", client.namespace),
    })
}

fn volume(text: &str) -> Result<Volume> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => bail!("--volume {text}: not SOURCE:TARGET[:ro]"),
    };
    ensure!(target.starts_with('/'), "--volume {text}: the target is not an absolute path");
    let source = std::fs::canonicalize(source).with_context(|| format!("--volume {text}: {source}"))?;
    Ok(Volume { source: source.to_string_lossy().into_owned(), target: (*target).to_owned(), read_only })
}

/// Calls `read` with a folder in which the image's /etc/passwd is: the layer that has it, without mounting anything.
fn with_users<T>(mounts: &[Mount], read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folders: Vec<PathBuf> = mounts.iter().flat_map(layers).collect();
    let has_users = |folder: &&PathBuf| folder.join("etc/passwd").symlink_metadata().is_ok();
    let fallback = PathBuf::from("/var/empty");
    read(folders.iter().find(has_users).unwrap_or(&fallback))
}

/// The folders of a mount, top first.
fn layers(mount: &Mount) -> Vec<PathBuf> {
    if mount.r#type == "bind" {
        return vec![mount.source.clone().into()];
    }
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or_default().split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// The mounts of a container's snapshot.
async fn mounts(client: &Client, id: &str) -> Result<Vec<Mount>> {
    let request = snapshots::MountsRequest { snapshotter: OVERLAY.into(), key: id.into() };
    Ok(client.snapshots().mounts(client.request(request)).await.map_err(said)?.into_inner().mounts)
}

async fn start_detached(client: &Client, id: &str, log: &str) -> Result<()> {
    let request = tasks::CreateTaskRequest {
        container_id: id.into(),
        rootfs: mounts(client, id).await?,
        stdout: log.into(),
        stderr: log.into(),
        ..tasks::CreateTaskRequest::default()
    };
    client.tasks().create(client.request(request)).await.map_err(said)?;
    let start = tasks::StartRequest { container_id: id.into(), exec_id: String::new() };
    client.tasks().start(client.request(start)).await.map_err(said)?;
    Ok(())
}

async fn run_in_foreground(client: &Client, args: &Args, id: &str) -> Result<i32> {
    let mut fifos = io::Fifos::make(args.interactive, args.tty)?;
    let request = tasks::CreateTaskRequest {
        container_id: id.into(),
        rootfs: mounts(client, id).await?,
        stdin: fifos.stdin.clone(),
        stdout: fifos.stdout.clone(),
        stderr: fifos.stderr.clone(),
        terminal: args.tty,
        ..tasks::CreateTaskRequest::default()
    };
    fifos.copy();
    client.tasks().create(client.request(request)).await.map_err(said)?;
    super::exec::attend(client, id, "", &mut fifos, args.tty).await
}

/// Undoes a create that failed half way.
async fn remove_parts(client: &Client, id: &str) {
    let container = containers::DeleteContainerRequest { id: id.into() };
    let _ = client.containers().delete(client.request(container)).await; // it may never have been made
    let snapshot = snapshots::RemoveSnapshotRequest { snapshotter: OVERLAY.into(), key: id.into() };
    let _ = client.snapshots().remove(client.request(snapshot)).await;
}
