//! `tarectl rm`: containers with their task, snapshot, log and folder.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::services::events::v1::SubscribeRequest;
use tare_proto::containerd::services::snapshots::v1::RemoveSnapshotRequest;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::containerd::v1::types::Status;

use super::client::{Client, said};
use super::container::{self, Container};
use super::{each, lifecycle};
use crate::caretaker;

#[derive(clap::Args)]
pub struct Args {
    /// Kill a container that runs
    #[arg(short, long)]
    force: bool,
    /// Remove its anonymous volumes too; there are none
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true)]
    containers: Vec<String>,
}

pub async fn rm(client: &Client, args: &Args) -> Result<i32> {
    let mut failed = 0;
    for name in &args.containers {
        let container = match container::find(client, name).await {
            Ok(container) => container,
            // What is to be gone is gone.
            Err(error) if args.force => {
                eprintln!("tarectl: {error:#}");
                continue;
            }
            Err(error) => {
                failed = each::report(&error);
                continue;
            }
        };
        match remove(client, &container.id, args.force).await {
            Ok(()) => println!("{name}"),
            Err(error) => failed = each::report(&error),
        }
    }
    Ok(failed)
}

/// Removes a container; one that runs is killed if `force` says so.
pub async fn remove(client: &Client, id: &str, force: bool) -> Result<()> {
    let mut container = container::find(client, id).await?;
    let process = container::process(client, id).await?;
    let status = process.as_ref().map(tare_proto::containerd::v1::types::Process::status);
    if container::is_live(process.as_ref()) && !force {
        bail!("container {id} is running: stop it first, or use --force");
    }
    // The daemon removes such a container when it ends: two would be in each other's way.
    let removed = match (&status, container.labels.contains_key(caretaker::REMOVE)) {
        (Some(_), true) => Some(Removal::expect(client, id).await?),
        _ => None,
    };
    if let Some(status) = status {
        if status != Status::Stopped {
            lifecycle::keep_down(client, &mut container).await?;
            end(client, id, status).await?;
        }
        if let Some(removed) = removed {
            return removed.wait(client).await;
        }
        container::delete_task(client, id).await?;
    }
    let request = containers::DeleteContainerRequest { id: id.into() };
    client.containers().delete(client.request(request)).await.map_err(said)?; // the daemon sees to its folder and network
    remove_snapshot(client, &container).await
}

/// Kills a task and waits for its end.
async fn end(client: &Client, id: &str, status: Status) -> Result<()> {
    let wait = client.request(tasks::WaitRequest { container_id: id.into(), exec_id: String::new() });
    let mut waiting = client.tasks();
    let waiting = tokio::spawn(async move { waiting.wait(wait).await });
    let kill = tasks::KillRequest { container_id: id.into(), signal: 9, all: true, exec_id: String::new() };
    let _ = client.tasks().kill(client.request(kill)).await; // it may have ended this moment
    if status == Status::Paused {
        lifecycle::resume(client, id).await?; // where a frozen process does not even die
    }
    match waiting.await.context("waiting for the end")? {
        Err(status) if status.code() != tonic::Code::NotFound => Err(said(status)),
        _ => Ok(()),
    }
}

async fn remove_snapshot(client: &Client, container: &Container) -> Result<()> {
    if container.snapshot_key.is_empty() {
        return Ok(());
    }
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    match client.snapshots().remove(client.request(RemoveSnapshotRequest { snapshotter, key })).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()), // the collector was faster
        answer => answer.map(drop).map_err(said),
    }
}

/// Watches for the removal that the daemon does when a container with `--rm` has ended.
pub struct Removal {
    id: String,
    events: tonic::Streaming<tare_proto::containerd::types::Envelope>,
}

impl Removal {
    const PATIENCE: Duration = Duration::from_secs(30);

    pub async fn expect(client: &Client, id: &str) -> Result<Removal> {
        let namespace = &client.namespace;
        let filters = vec![format!("topic==\"/containers/delete\",namespace=={namespace:?},event.id=={id:?}")];
        let events = client.events().subscribe(client.request(SubscribeRequest { filters })).await.map_err(said)?;
        Ok(Removal { id: id.to_owned(), events: events.into_inner() })
    }

    pub async fn wait(mut self, client: &Client) -> Result<()> {
        let id = self.id.clone();
        if self.is_gone(client).await? {
            return Ok(()); // before we watched
        }
        let told = tokio::time::timeout(Self::PATIENCE, self.events.message()).await;
        if matches!(told, Ok(Ok(Some(_)))) || self.is_gone(client).await? {
            return Ok(());
        }
        bail!("container {id} was not removed: `tarectl rm {id}` does it")
    }

    async fn is_gone(&self, client: &Client) -> Result<bool> {
        let get = client.request(containers::GetContainerRequest { id: self.id.clone() });
        match client.containers().get(get).await {
            Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
            answer => answer.map(|_| false).map_err(said),
        }
    }
}
