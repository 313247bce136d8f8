//! `tarectl ps`, `logs`, `kill`, `rm`, `inspect`, `stats`.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, Write as _};

use anyhow::{Context as _, Result, bail};
use tare_proto::any;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::images::v1::GetImageRequest;
use tare_proto::containerd::services::snapshots::v1::RemoveSnapshotRequest;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::containerd::v1::types::{Process, Status};
use tare_proto::io::containerd::cgroups::{v1, v2};

use super::client::{Client, said};
use super::run::LOG;
use super::{Output, size, table};
use crate::registry::Reference;

#[derive(clap::Args)]
pub struct PsArgs {
    /// Show those that have ended too
    #[arg(short, long)]
    all: bool,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(clap::Args)]
pub struct LogsArgs {
    /// Go on as more is printed, until the container has ended
    #[arg(short, long)]
    follow: bool,
    container: String,
}

#[derive(clap::Args)]
pub struct KillArgs {
    /// By name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    #[arg(required = true)]
    containers: Vec<String>,
}

#[derive(clap::Args)]
pub struct RmArgs {
    /// Kill a container that runs
    #[arg(short, long)]
    force: bool,
    #[arg(required = true)]
    containers: Vec<String>,
}

#[derive(clap::Args)]
pub struct InspectArgs {
    /// A container's name, or else an image's
    name: String,
}

#[derive(clap::Args)]
pub struct StatsArgs {
    /// All that run, if none is named
    containers: Vec<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

async fn processes(client: &Client) -> Result<HashMap<String, Process>> {
    let listed =
        client.tasks().list(client.request(tasks::ListTasksRequest::default())).await.map_err(said)?.into_inner();
    Ok(listed.tasks.into_iter().map(|process| (process.id.clone(), process)).collect())
}

fn word(process: Option<&Process>) -> &'static str {
    match process.map(Process::status) {
        None => "created",
        Some(Status::Created) => "created",
        Some(Status::Running) => "running",
        Some(Status::Stopped) => "exited",
        Some(Status::Paused | Status::Pausing) => "paused",
        Some(Status::Unknown) => "unknown",
    }
}

pub async fn ps(client: &Client, args: &PsArgs) -> Result<i32> {
    let found = client.containers().list(client.request(containers::ListContainersRequest::default())).await;
    let found = found.map_err(said)?.into_inner().containers;
    let processes = processes(client).await?;
    let shown = found.iter().map(|container| (container, processes.get(&container.id)));
    let shown: Vec<_> =
        shown.filter(|(_, process)| args.all || matches!(word(*process), "running" | "paused")).collect();
    if args.quiet {
        shown.iter().for_each(|(container, _)| println!("{}", container.id));
    } else if args.output == Output::Json {
        let rows: Vec<_> = shown
            .iter()
            .map(|(container, process)| {
                let exit =
                    process.filter(|process| process.status() == Status::Stopped).map(|process| process.exit_status);
                serde_json::json!({"name": container.id, "image": container.image, "status": word(*process),
                    "pid": process.map_or(0, |process| process.pid), "exitCode": exit})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        let mut rows = vec![["NAME", "IMAGE", "STATUS", "PID"].map(str::to_owned).to_vec()];
        for (container, process) in shown {
            let status = match process {
                Some(process) if process.status() == Status::Stopped => format!("exited ({})", process.exit_status),
                process => word(process).to_owned(),
            };
            let pid = process.map_or(String::new(), |process| process.pid.to_string());
            rows.push(vec![container.id.clone(), container.image.clone(), status, pid]);
        }
        table(&rows);
    }
    Ok(0)
}

async fn container(client: &Client, id: &str) -> Result<containers::Container> {
    let found = client
        .containers()
        .get(client.request(containers::GetContainerRequest { id: id.into() }))
        .await
        .map_err(said)?;
    found.into_inner().container.with_context(|| format!("container {id}: not found"))
}

pub async fn logs(client: &Client, args: &LogsArgs) -> Result<i32> {
    let container = container(client, &args.container).await?;
    let log = container.labels.get(LOG).and_then(|address| address.strip_prefix("file://"));
    let log =
        log.with_context(|| format!("container {} was not run by tarectl: it has no log here", args.container))?;
    let mut file = match std::fs::File::open(log) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0), // run in the foreground, or silent
        file => file.with_context(|| format!("opening {log}"))?,
    };
    loop {
        // Asked before the file is read: what comes after the last look of a container that has ended is nothing.
        let running = args.follow
            && processes(client).await?.get(&args.container).is_some_and(|process| process.status() != Status::Stopped);
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("reading {log}"))?;
        std::io::stdout().write_all(&text).and_then(|()| std::io::stdout().flush())?;
        if !running {
            return Ok(0);
        }
        let here = file.stream_position()?;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        file.seek(std::io::SeekFrom::Start(here))?;
    }
}

pub async fn kill(client: &Client, args: &KillArgs) -> Result<i32> {
    let signal = signal(&args.signal)?;
    for id in &args.containers {
        let kill = tasks::KillRequest { container_id: id.clone(), signal, ..tasks::KillRequest::default() };
        client.tasks().kill(client.request(kill)).await.map_err(said)?;
        println!("{id}");
    }
    Ok(0)
}

fn signal(text: &str) -> Result<u32> {
    const NAMES: &[(&str, u32)] = &[
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
    ];
    if let Ok(number @ 1..=64) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, number)) => Ok(*number),
        None => bail!("--signal {text}: not a signal"),
    }
}

pub async fn rm(client: &Client, args: &RmArgs) -> Result<i32> {
    for id in &args.containers {
        remove(client, id, args.force).await?;
        println!("{id}");
    }
    Ok(0)
}

/// Removes a container with its task, its snapshot and its log.
pub async fn remove(client: &Client, id: &str, force: bool) -> Result<()> {
    let container = container(client, id).await?;
    let get = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    let process = client.tasks().get(client.request(get)).await.ok().and_then(|got| got.into_inner().process);
    if let Some(process) = process {
        if process.status() != Status::Stopped {
            if !force && process.status() != Status::Created {
                bail!("container {id} is running: kill it first, or use --force");
            }
            let kill = tasks::KillRequest { container_id: id.into(), signal: 9, all: true, exec_id: String::new() };
            let _ = client.tasks().kill(client.request(kill)).await; // it may have ended this moment
            let wait = tasks::WaitRequest { container_id: id.into(), exec_id: String::new() };
            client.tasks().wait(client.request(wait)).await.map_err(said)?;
        }
        client
            .tasks()
            .delete(client.request(tasks::DeleteTaskRequest { container_id: id.into() }))
            .await
            .map_err(said)?;
    }
    client
        .containers()
        .delete(client.request(containers::DeleteContainerRequest { id: id.into() }))
        .await
        .map_err(said)?;
    if !container.snapshot_key.is_empty() {
        let snapshot = RemoveSnapshotRequest { snapshotter: container.snapshotter, key: container.snapshot_key };
        match client.snapshots().remove(client.request(snapshot)).await {
            Err(status) if status.code() == tonic::Code::NotFound => {} // the collector was faster
            answer => drop(answer.map_err(said)?),
        }
    }
    if let Some(log) = container.labels.get(LOG).and_then(|address| address.strip_prefix("file://")) {
        match std::fs::remove_file(log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {log}"));
            }
            _ => {}
        }
    }
    Ok(())
}

pub async fn inspect(client: &Client, args: &InspectArgs) -> Result<i32> {
    let shown = match container(client, &args.name).await {
        Ok(container) => {
            let spec: serde_json::Value = serde_json::from_slice(&container.spec.unwrap_or_default().value)?;
            let processes = processes(client).await?;
            let process = processes.get(&container.id);
            serde_json::json!({"name": container.id, "image": container.image, "labels": container.labels,
                "snapshotter": container.snapshotter, "snapshotKey": container.snapshot_key, "status": word(process),
                "pid": process.map_or(0, |process| process.pid), "spec": spec})
        }
        Err(error) => {
            let Ok(name) = Reference::complete(&args.name) else { return Err(error) };
            let found = client.images().get(client.request(GetImageRequest { name })).await.map_err(|_| error)?;
            let image = found.into_inner().image.unwrap_or_default();
            let target = image.target.unwrap_or_default();
            serde_json::json!({"name": image.name, "labels": image.labels,
                "target": {"mediaType": target.media_type, "digest": target.digest, "size": target.size}})
        }
    };
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(0)
}

pub async fn stats(client: &Client, args: &StatsArgs) -> Result<i32> {
    let filters = args.containers.iter().map(|id| format!("id=={id}")).collect();
    let metrics = client
        .tasks()
        .metrics(client.request(tasks::MetricsRequest { filters }))
        .await
        .map_err(said)?
        .into_inner()
        .metrics;
    let used: Vec<_> = metrics.iter().map(|metric| (metric.id.clone(), used(metric.data.as_ref()))).collect();
    if args.output == Output::Json {
        let rows: Vec<_> = used
            .iter()
            .map(|(id, used)| serde_json::json!({"name": id, "cpuNanoseconds": used.cpu, "memoryBytes": used.memory, "processes": used.pids}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(0);
    }
    let mut rows = vec![["NAME", "CPU TIME", "MEMORY", "PROCESSES"].map(str::to_owned).to_vec()];
    for (id, used) in used {
        rows.push(vec![id, format!("{:.2} s", used.cpu as f64 / 1e9), size::show(used.memory), used.pids.to_string()]);
    }
    table(&rows);
    Ok(0)
}

#[derive(Default)]
struct Used {
    /// Nanoseconds.
    cpu: u64,
    /// Bytes, without what the kernel would give back.
    memory: u64,
    pids: u64,
}

fn used(data: Option<&prost_types::Any>) -> Used {
    let Some(data) = data else { return Used::default() };
    if let Ok(Some(metrics)) = any::unpack::<v1::Metrics>(data, "io.containerd.cgroups.v1.Metrics") {
        let memory = metrics.memory.unwrap_or_default();
        return Used {
            cpu: metrics.cpu.and_then(|cpu| cpu.usage).map_or(0, |usage| usage.total),
            memory: memory.usage.unwrap_or_default().usage.saturating_sub(memory.total_inactive_file),
            pids: metrics.pids.map_or(0, |pids| pids.current),
        };
    }
    if let Ok(Some(metrics)) = any::unpack::<v2::Metrics>(data, "io.containerd.cgroups.v2.Metrics") {
        let memory = metrics.memory.unwrap_or_default();
        return Used {
            cpu: metrics.cpu.map_or(0, |cpu| cpu.usage_usec * 1000),
            memory: memory.usage.saturating_sub(memory.inactive_file),
            pids: metrics.pids.map_or(0, |pids| pids.current),
        };
    }
    Used::default()
}
