//! `tarectl stop`, `restart`, `kill`, `pause`, `unpause` and `wait`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::containerd::v1::types::Status;

use super::client::{Client, said};
use super::container::{self, Container};
use super::{each, signal};

/// docker's, for containers that do not say otherwise.
const STOP_TIMEOUT: i64 = 10;

#[derive(clap::Args)]
pub struct StopArgs {
    /// Seconds after which it is killed; -1 for never
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// The signal to begin with
    #[arg(short, long)]
    signal: Option<String>,
    #[arg(required = true)]
    containers: Vec<String>,
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
pub struct NamesArgs {
    #[arg(required = true)]
    containers: Vec<String>,
}

pub async fn stop(client: &Client, args: &StopArgs) -> Result<i32> {
    Ok(each::name(&args.containers, async |name| {
        let mut container = container::find(client, name).await?;
        end(client, &mut container, args).await?;
        println!("{name}");
        Ok(())
    })
    .await)
}

pub async fn restart(client: &Client, args: &StopArgs) -> Result<i32> {
    Ok(each::name(&args.containers, async |name| {
        let mut container = container::find(client, name).await?;
        end(client, &mut container, args).await?;
        prepare_start(client, &mut container).await?;
        container::create_task(client, &container).await?;
        container::start_task(client, &container.id, "").await?;
        println!("{name}");
        Ok(())
    })
    .await)
}

/// The container's signal, then time, then SIGKILL. One that has ended is left alone.
async fn end(client: &Client, container: &mut Container, args: &StopArgs) -> Result<()> {
    keep_down(client, container).await?;
    let process = container::process(client, &container.id).await?;
    let Some(process) = process.filter(|process| container::is_live(Some(process))) else { return Ok(()) };
    let label = |name: &str| container.labels.get(name).map(String::as_str);
    let begin = args.signal.as_deref().or(label(container::STOP_SIGNAL)).unwrap_or("TERM");
    let seconds =
        args.time.or(label(container::STOP_TIMEOUT).and_then(|text| text.parse().ok())).unwrap_or(STOP_TIMEOUT);
    let wait = tasks::WaitRequest { container_id: container.id.clone(), exec_id: String::new() };
    let (mut waiting, wait) = (client.tasks(), client.request(wait));
    let mut waiting = tokio::spawn(async move { waiting.wait(wait).await });
    send(client, &container.id, signal::parse("--signal", begin)?).await?;
    if process.status() == Status::Paused {
        resume(client, &container.id).await?;
    }
    let patience = u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs);
    let answer = match tokio::time::timeout(patience, &mut waiting).await {
        Ok(answer) => answer,
        Err(_) => {
            send(client, &container.id, libc::SIGKILL.unsigned_abs()).await?;
            waiting.await
        }
    };
    match answer.context("waiting for the end")? {
        Err(status) if status.code() != tonic::Code::NotFound => Err(said(status)), // with --rm it is gone already
        _ => Ok(()),
    }
}

/// A process that ended this moment needs no signal.
async fn send(client: &Client, id: &str, signal: u32) -> Result<()> {
    let kill = tasks::KillRequest { container_id: id.into(), signal, ..tasks::KillRequest::default() };
    match client.tasks().kill(client.request(kill)).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        answer => answer.map(drop).map_err(said),
    }
}

/// Tells the daemon not to start it again.
pub async fn keep_down(client: &Client, container: &mut Container) -> Result<()> {
    if !container.labels.contains_key(container::RESTART_POLICY) {
        return Ok(());
    }
    container.labels.insert(container::RESTART_STOPPED.into(), "true".into());
    container.labels.insert(container::RESTART_STATUS.into(), "stopped".into());
    container::save_labels(client, container).await
}

/// What has to be done before a container's task can be made once more.
pub async fn prepare_start(client: &Client, container: &mut Container) -> Result<()> {
    container::delete_task(client, &container.id).await?;
    join_again(client, container).await
}

/// Another container whose namespaces it joins may be another process by now.
async fn join_again(client: &Client, container: &mut Container) -> Result<()> {
    let Some(joins) = container.labels.get(container::JOINS).cloned() else { return Ok(()) };
    let mut spec = container::spec(container)?;
    for (kind, name) in joins.split(',').filter_map(|join| join.split_once('=')) {
        let other = container::find(client, name).await?;
        let pid = container::running(client, &other.id).await?;
        let file = if kind == "network" { "net" } else { kind };
        let namespaces = spec["linux"]["namespaces"].as_array_mut().into_iter().flatten();
        for namespace in namespaces.filter(|namespace| namespace["type"] == kind) {
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
    if let Some(any) = &mut container.spec {
        any.value = spec.to_string().into_bytes();
    }
    let mask = prost_types::FieldMask { paths: vec!["spec".into()] };
    let request = containers::UpdateContainerRequest { container: Some(container.clone()), update_mask: Some(mask) };
    client.containers().update(client.request(request)).await.map_err(said)?;
    Ok(())
}

pub async fn kill(client: &Client, args: &KillArgs) -> Result<i32> {
    let signal = signal::parse("--signal", &args.signal)?;
    Ok(each::name(&args.containers, async |name| {
        let mut container = container::find(client, name).await?;
        container::running(client, &container.id).await?;
        let stop =
            container.labels.get(container::STOP_SIGNAL).map_or(Ok(15), |text| signal::parse("stop signal", text))?;
        if signal == stop || signal == libc::SIGKILL.unsigned_abs() {
            keep_down(client, &mut container).await?;
        }
        let kill = tasks::KillRequest { container_id: container.id, signal, ..tasks::KillRequest::default() };
        client.tasks().kill(client.request(kill)).await.map_err(said)?;
        println!("{name}");
        Ok(())
    })
    .await)
}

pub async fn pause(client: &Client, args: &NamesArgs) -> Result<i32> {
    Ok(each::name(&args.containers, async |name| {
        let id = container::find(client, name).await?.id;
        let state = container::process(client, &id).await?;
        match container::word(state.as_ref()) {
            "running" => {}
            "paused" => bail!("container {id} is already paused"),
            _ => bail!("container {id} is not running"),
        }
        let pause = tasks::PauseTaskRequest { container_id: id };
        client.tasks().pause(client.request(pause)).await.map_err(said)?;
        println!("{name}");
        Ok(())
    })
    .await)
}

pub async fn unpause(client: &Client, args: &NamesArgs) -> Result<i32> {
    Ok(each::name(&args.containers, async |name| {
        let id = container::find(client, name).await?.id;
        let state = container::process(client, &id).await?;
        ensure!(container::word(state.as_ref()) == "paused", "container {id} is not paused");
        resume(client, &id).await?;
        println!("{name}");
        Ok(())
    })
    .await)
}

pub async fn resume(client: &Client, id: &str) -> Result<()> {
    let resume = tasks::ResumeTaskRequest { container_id: id.into() };
    match client.tasks().resume(client.request(resume)).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        answer => answer.map(drop).map_err(said),
    }
}

/// Prints each exit code as it comes.
pub async fn wait(client: &Client, args: &NamesArgs) -> Result<i32> {
    Ok(each::name(&args.containers, async |name| {
        let id = container::find(client, name).await?.id;
        let wait = tasks::WaitRequest { container_id: id.clone(), exec_id: String::new() };
        match client.tasks().wait(client.request(wait)).await {
            Err(status) if status.code() == tonic::Code::NotFound => bail!("container {id} was not started"),
            answer => println!("{}", answer.map_err(said)?.into_inner().exit_status),
        }
        Ok(())
    })
    .await)
}
