//! `tarectl create`: from an image and the command line to a container that can be started.

mod flags;
mod lists;
mod network;
mod volume;

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use prost_types::Any;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::introspection::v1::PluginsRequest;
use tare_proto::containerd::services::snapshots::v1 as snapshots;

use super::client::{Client, said};
use super::container::{self, Container, Folder};
use super::lease::Lease;
use super::{images, signal, view};
use crate::caretaker;
use crate::oci::{Asked, Device, ImageConfig, Limits, Place, device_rule, spec};
use crate::snapshot::OVERLAY;

pub use flags::{Flags, Pull};
pub use lists::environment;
use network::Choice;

const RUNTIME: &str = "io.containerd.tare.v2";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    pub flags: Flags,
    pub image: String,
    /// The command, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

pub async fn create(client: &Client, args: &Args) -> Result<i32> {
    println!("{}", make(client, args, true).await?.id);
    Ok(0)
}

/// Makes the container, or leaves nothing.
pub async fn make(client: &Client, args: &Args, quiet: bool) -> Result<Container> {
    let flags = &args.flags;
    let id = match &flags.name {
        Some(name) => name.clone(),
        None => random_name()?,
    };
    if let Some(file) = &flags.cidfile {
        ensure!(!file.exists(), "--cidfile {}: is there already: another container's?", file.display());
    }
    let choice = Choice::of(client, flags).await?;
    let mut asked = asked(client, flags, &choice, &id).await?;
    let image = images::find_or_pull(client, &args.image, flags, quiet).await?;
    let folder = Folder::of(client, &id).await?;
    let config = ImageConfig::read(&image.config)?;
    let mut labels = labels(client, flags, &config, &folder).await?;
    labels.insert(container::NETWORK.into(), choice.name());
    let parts = Parts { client, id: &id };
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: OVERLAY.into(),
        key: id.clone(),
        parent: image.chain.clone(),
        ..snapshots::PrepareSnapshotRequest::default()
    };
    let lease = Lease::take(client).await?;
    let mounts = match client.snapshots().prepare(lease.request(client, prepare)).await {
        Ok(answer) => answer.into_inner().mounts,
        Err(status) => {
            lease.give_back(client).await;
            if status.code() == tonic::Code::AlreadyExists {
                bail!("the container name {id} is already in use: remove or rename that container");
            }
            return Err(said(status));
        }
    };
    let made = async {
        folder.make()?;
        if flags.interactive {
            folder.make_input()?;
        }
        asked.args.clone_from(&args.command);
        let ports = network::give(client, flags, &choice, &id, &folder, &mut asked).await?;
        if !ports.is_empty() {
            labels.insert(container::PORTS.into(), ports);
        }
        let (at, config, asked) = (folder.path(), &config, &asked);
        let spec = view::with(&mounts, at, |rootfs| Ok(spec(config, asked, rootfs)?))?;
        let container = Container {
            id: id.clone(),
            labels,
            image: image.name.clone(),
            runtime: Some(containers::container::Runtime {
                name: flags.runtime.clone().unwrap_or_else(|| RUNTIME.into()),
                options: None,
            }),
            spec: Some(Any { type_url: SPEC.into(), value: spec.to_string().into_bytes() }),
            snapshotter: OVERLAY.into(),
            snapshot_key: id.clone(),
            ..Container::default()
        };
        let request = containers::CreateContainerRequest { container: Some(container) };
        let made = client.containers().create(client.request(request)).await.map_err(said)?;
        if let Some(file) = &flags.cidfile {
            std::fs::write(file, &id).with_context(|| format!("--cidfile {}", file.display()))?;
        }
        made.into_inner().container.context("the daemon gave no container back")
    };
    let made = made.await;
    if made.is_err() {
        parts.remove(&folder).await;
    }
    lease.give_back(client).await; // the container names it now, or it is gone
    made
}

/// Twelve random hexadecimal digits.
fn random_name() -> Result<String> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("getting a random name")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What is there of a container that is being made.
struct Parts<'a> {
    client: &'a Client,
    id: &'a str,
}

impl Parts<'_> {
    /// Undoes a create that failed half way. The error on its way matters more than what fails here.
    async fn remove(&self, folder: &Folder) {
        let client = self.client;
        let container = containers::DeleteContainerRequest { id: self.id.into() };
        let _ = client.containers().delete(client.request(container)).await; // it may never have been made
        network::take(client, self.id).await;
        let snapshot = snapshots::RemoveSnapshotRequest { snapshotter: OVERLAY.into(), key: self.id.into() };
        let _ = client.snapshots().remove(client.request(snapshot)).await;
        let _ = std::fs::remove_dir_all(folder.path());
    }
}

/// The container's labels: the image's, those given, and ours.
async fn labels(
    client: &Client,
    flags: &Flags,
    image: &ImageConfig,
    folder: &Folder,
) -> Result<HashMap<String, String>> {
    const LONGEST: usize = 4096; // together with the name, containerd's bound
    let fits = |(name, value): &(String, String)| name.len() + value.len() <= LONGEST;
    let mut labels: HashMap<String, String> =
        image.labels.clone().unwrap_or_default().into_iter().filter(fits).collect();
    labels.extend(lists::labels(&flags.label_file, &flags.label)?);
    let log = folder.log_uri()?;
    let mut set = |name: &str, value: String| labels.insert(name.to_owned(), value);
    set(container::LOG, log.clone());
    if flags.rm {
        set(caretaker::REMOVE, "true".into());
    }
    let stop = flags.stop_signal.as_deref().unwrap_or(&image.stop_signal);
    if !stop.is_empty() {
        signal::parse("--stop-signal", stop)?;
        set(container::STOP_SIGNAL, stop.to_owned());
    }
    if let Some(seconds) = flags.stop_timeout {
        set(container::STOP_TIMEOUT, seconds.to_string());
    }
    let joins: Vec<String> = [("pid", &flags.pid), ("network", &flags.network)]
        .into_iter()
        .filter_map(|(kind, place)| Some(format!("{kind}={}", place.as_deref()?.strip_prefix("container:")?)))
        .collect();
    if !joins.is_empty() {
        set(container::JOINS, joins.join(","));
    }
    if let Some(policy) = flags.restart.as_deref().filter(|policy| *policy != "no") {
        check_restart(client, policy).await?;
        set(container::RESTART_POLICY, policy.to_owned());
        set(container::RESTART_LOG, log);
    }
    Ok(labels)
}

/// The policy is docker's, and the daemon must be able to follow it: it starts containers again, not we.
async fn check_restart(client: &Client, policy: &str) -> Result<()> {
    let (kind, times) = policy.split_once(':').map_or((policy, None), |(kind, times)| (kind, Some(times)));
    let good = match (kind, times) {
        ("always" | "unless-stopped" | "on-failure", None) => true,
        ("on-failure", Some(times)) => times.parse::<u32>().is_ok(),
        _ => false,
    };
    ensure!(good, "--restart {policy}: neither no, always, unless-stopped nor on-failure[:TIMES]");
    let filters = vec!["id==restart".to_owned()];
    let found = client.introspection().plugins(client.request(PluginsRequest { filters })).await.map_err(said)?;
    let plugins = found.into_inner().plugins;
    let able = plugins.iter().any(|plugin| plugin.capabilities.iter().any(|known| known == kind));
    ensure!(able, "--restart {policy}: this daemon does not start containers again");
    Ok(())
}

/// The command line, read and checked; but for the program's arguments.
async fn asked(client: &Client, flags: &Flags, choice: &Choice, id: &str) -> Result<Asked> {
    ensure!(flags.shm_size != Some(0), "--shm-size: must be more than 0");
    if let Some(userns) = flags.userns.as_deref() {
        ensure!(userns == "host", "--userns {userns}: only host is supported");
    }
    let network = match choice {
        Choice::Host => Place::Host,
        Choice::None | Choice::Named(_) => Place::Own, // a named one comes with its own
        Choice::Of(_) => place(client, "--network", "net", &choice.name(), &[]).await?,
    };
    let uts = place(client, "--uts", "uts", flags.uts.as_deref().unwrap_or("private"), &["private"]).await?;
    let own_name = uts == Place::Own;
    ensure!(
        own_name || flags.hostname.is_none(),
        "--hostname and --uts={} exclude each other",
        flags.uts.as_deref().unwrap_or("")
    );
    let hostname = match (&flags.hostname, &network) {
        (Some(name), _) => {
            ensure!(!name.is_empty() && name.len() <= 64, "--hostname {name}: has not 1 to 64 characters");
            Some(name.clone())
        }
        (None, Place::Own) if own_name => Some(id.chars().take(63).collect()),
        (None, _) => Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
    };
    let mut asked = Asked {
        entrypoint: flags.entrypoint.clone(),
        env: lists::environment(&flags.env_file, &flags.env)?,
        workdir: flags.workdir.clone(),
        user: flags.user.clone(),
        groups: flags.group_add.clone(),
        hostname,
        domainname: flags.domainname.clone(),
        terminal: flags.tty,
        read_only: flags.read_only,
        privileged: flags.privileged,
        cap_add: flags.cap_add.clone(),
        cap_drop: flags.cap_drop.clone(),
        tmpfs: flags.tmpfs.iter().map(|text| volume::tmpfs(text)).collect::<Result<_>>()?,
        binds: flags.volume.iter().map(|text| volume::volume(text)).collect::<Result<_>>()?,
        shm_size: flags.shm_size,
        no_shm: flags.ipc.as_deref() == Some("none"),
        pid: place(client, "--pid", "pid", flags.pid.as_deref().unwrap_or("private"), &["private"]).await?,
        ipc: ipc(flags)?,
        uts,
        cgroup: cgroup(flags)?,
        limits: limits(flags)?,
        device_rules: flags.device_cgroup_rule.iter().map(|text| Ok(device_rule(text)?)).collect::<Result<_>>()?,
        rlimits: flags.ulimit.iter().map(|text| lists::ulimit(text)).collect::<Result<_>>()?,
        sysctls: lists::pairs("--sysctl", &flags.sysctl)?,
        oom_score_adj: flags.oom_score_adj,
        annotations: lists::pairs("--annotation", &flags.annotation)?,
        cgroups_path: cgroups_path(client, flags, id)?,
        network,
        ..Asked::default()
    };
    for text in &flags.mount {
        match volume::mount(text)? {
            volume::Mounted::Bind(bind) => asked.binds.push(bind),
            volume::Mounted::Tmpfs(tmpfs) => asked.tmpfs.push(tmpfs),
        }
    }
    for text in &flags.device {
        asked.devices.extend(Device::parse(text)?);
    }
    if let Some(target) = twice(&asked) {
        bail!("two mounts at {target}");
    }
    lists::security(&flags.security_opt, &mut asked)?;
    Ok(asked)
}

/// A target that two mounts have.
fn twice(asked: &Asked) -> Option<String> {
    let binds = asked.binds.iter().map(|bind| &bind.target);
    let mut targets: Vec<_> =
        binds.chain(asked.tmpfs.iter().map(|tmpfs| &tmpfs.target)).map(|target| target.trim_end_matches('/')).collect();
    targets.sort_unstable();
    targets.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].to_owned())
}

/// Reads a namespace: one of `own`, `host`, or `container:NAME`.
async fn place(client: &Client, flag: &str, kind: &str, text: &str, own: &[&str]) -> Result<Place> {
    if own.contains(&text) {
        return Ok(Place::Own);
    }
    if text == "host" {
        return Ok(Place::Host);
    }
    let name = text.strip_prefix("container:").filter(|_| kind != "uts");
    let Some(name) = name else { bail!("{flag} {text}: unknown") };
    let other = container::find(client, name).await.with_context(|| format!("{flag} {text}"))?;
    let pid = container::running(client, &other.id).await.with_context(|| format!("{flag} {text}"))?;
    Ok(Place::Join(format!("/proc/{pid}/ns/{kind}").into()))
}

fn ipc(flags: &Flags) -> Result<Place> {
    Ok(match flags.ipc.as_deref() {
        None | Some("private" | "none") => Place::Own,
        Some("host") => Place::Host,
        Some(other) => bail!("--ipc {other}: only private, none and host are supported"),
    })
}

/// docker's rule: with version 1 of cgroups, a privileged container sees the host's.
fn cgroup(flags: &Flags) -> Result<Place> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Ok(match flags.cgroupns.as_deref() {
        None if flags.privileged && !unified => Place::Host,
        None | Some("private") => Place::Own,
        Some("host") => Place::Host,
        Some(other) => bail!("--cgroupns {other}: neither private nor host"),
    })
}

/// One folder for each container, so that none is left above it when it is gone.
fn cgroups_path(client: &Client, flags: &Flags, id: &str) -> Result<String> {
    let own = format!("tare-{}-{id}", client.namespace);
    let Some(parent) = &flags.cgroup_parent else { return Ok(format!("/{own}")) };
    ensure!(!parent.split('/').any(|part| part == ".."), "--cgroup-parent {parent}: leads out of the tree");
    Ok(format!("/{}/{own}", parent.trim_matches('/')))
}

fn limits(flags: &Flags) -> Result<Limits> {
    const LEAST_MEMORY: i64 = 6 << 20; // docker's: below it the runtime itself would not fit
    const PERIOD: i64 = 100_000;
    if let Some(memory) = flags.memory.filter(|memory| *memory > 0) {
        ensure!(memory >= LEAST_MEMORY, "--memory {memory}: at least 6m is needed");
        let reserved = flags.memory_reservation.unwrap_or_default();
        ensure!(reserved <= memory, "--memory-reservation {reserved}: is above --memory");
    }
    if let Some(swap) = flags.memory_swap.filter(|swap| *swap != 0) {
        let memory = flags.memory.unwrap_or_default();
        ensure!(memory > 0, "--memory-swap: needs --memory");
        ensure!(
            swap == -1 || swap >= memory,
            "--memory-swap {swap}: is below --memory: it counts memory and swap together"
        );
    }
    if let Some(quota) = flags.cpu_quota.filter(|quota| *quota > 0) {
        ensure!(quota >= 1000, "--cpu-quota {quota}: at least 1000 is needed");
    }
    if let Some(period) = flags.cpu_period.filter(|period| *period > 0) {
        ensure!((1000..=1_000_000).contains(&period), "--cpu-period {period}: not 1000 to 1000000");
    }
    let quota = flags.cpus.filter(|cpus| cpus.0 > 0).map(|cpus| cpus.0 * PERIOD / 1000);
    Ok(Limits {
        memory: flags.memory.filter(|memory| *memory > 0),
        memory_reservation: flags.memory_reservation.filter(|memory| *memory > 0),
        memory_swap: flags.memory_swap.filter(|swap| *swap != 0),
        memory_swappiness: flags.memory_swappiness,
        oom_kill_disable: flags.oom_kill_disable,
        cpu_shares: flags.cpu_shares.filter(|shares| *shares > 0),
        cpu_quota: quota.or(flags.cpu_quota.filter(|quota| *quota != 0)),
        cpu_period: quota.map(|_| PERIOD.unsigned_abs()).or(flags.cpu_period.filter(|period| *period > 0)),
        cpuset_cpus: flags.cpuset_cpus.clone(),
        cpuset_mems: flags.cpuset_mems.clone(),
        pids: flags.pids_limit.filter(|pids| *pids != 0),
        blkio_weight: flags.blkio_weight,
    })
}

/// An error of the system in lower case and without its number.
fn words(error: &std::io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_contradict_each_other_are_refused_by_name() {
        let said = |flags: Flags| limits(&flags).unwrap_err().to_string();
        assert!(said(Flags { memory: Some(1 << 20), ..Flags::default() }).contains("at least 6m"));
        assert!(said(Flags { memory_swap: Some(1 << 30), ..Flags::default() }).contains("needs --memory"));
        let below = Flags { memory: Some(64 << 20), memory_swap: Some(1 << 20), ..Flags::default() };
        assert!(said(below).contains("is below --memory"));
        let half = limits(&Flags { cpus: Some(flags::Cpus(500)), ..Flags::default() }).unwrap();
        assert_eq!((half.cpu_quota, half.cpu_period), (Some(50_000), Some(100_000)));
        let none = limits(&Flags { memory: Some(0), pids_limit: Some(0), ..Flags::default() }).unwrap();
        assert_eq!((none.memory, none.pids), (None, None));
    }
}
