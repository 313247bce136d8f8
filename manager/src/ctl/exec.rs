//! `tarectl exec`, and attending to any process in the foreground.

use anyhow::{Context as _, Result};
use prost_types::Any;
use tare_proto::containerd::services::containers::v1::GetContainerRequest;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, said};
use super::io::{Fifos, Raw, window};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

#[derive(clap::Args)]
pub struct Args {
    /// Leave the process running
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    #[arg(short, long)]
    workdir: Option<String>,
    /// UID[:GID]
    #[arg(short, long)]
    user: Option<String>,
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub async fn exec(client: &Client, args: Args) -> Result<i32> {
    let process = process(client, &args).await?;
    let exec_id = format!("exec-{}", std::process::id());
    let mut fifos = if args.detach { None } else { Some(Fifos::make(args.interactive, args.tty)?) };
    let path = |pick: fn(&Fifos) -> &String| fifos.as_ref().map_or(String::new(), |fifos| pick(fifos).clone());
    let request = tasks::ExecProcessRequest {
        container_id: args.container.clone(),
        stdin: path(|fifos| &fifos.stdin),
        stdout: path(|fifos| &fifos.stdout),
        stderr: path(|fifos| &fifos.stderr),
        terminal: args.tty,
        spec: Some(Any { type_url: PROCESS.into(), value: process.to_string().into_bytes() }),
        exec_id: exec_id.clone(),
    };
    client.tasks().exec(client.request(request)).await.map_err(said)?;
    let Some(fifos) = &mut fifos else {
        let start = tasks::StartRequest { container_id: args.container, exec_id };
        client.tasks().start(client.request(start)).await.map_err(said)?;
        return Ok(0);
    };
    fifos.copy();
    let ended = attend(client, &args.container, &exec_id, fifos, args.tty).await;
    let delete = tasks::DeleteProcessRequest { container_id: args.container, exec_id };
    client.tasks().delete_process(client.request(delete)).await.map_err(said)?;
    ended
}

/// The container's own process, with what the command line changes.
async fn process(client: &Client, args: &Args) -> Result<serde_json::Value> {
    let request = GetContainerRequest { id: args.container.clone() };
    let container = client
        .containers()
        .get(client.request(request))
        .await
        .map_err(said)?
        .into_inner()
        .container
        .unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&container.spec.unwrap_or_default().value)
        .context("reading the container's specification")?;
    let mut process = spec["process"].clone();
    process["args"] = args.command.clone().into();
    process["terminal"] = args.tty.into();
    if let Some(workdir) = &args.workdir {
        process["cwd"] = workdir.as_str().into();
    }
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| text.parse::<u32>().with_context(|| format!("--user {user}: not UID[:GID]"));
        process["user"] = serde_json::json!({"uid": number(uid)?, "gid": number(gid)?});
    }
    if let Some(env) = process["env"].as_array_mut() {
        env.extend(args.env.iter().map(|variable| variable.as_str().into()));
    }
    Ok(process)
}

/// Starts a process that was created, copies and forwards until it has ended, and gives its exit code.
pub async fn attend(client: &Client, id: &str, exec_id: &str, fifos: &mut Fifos, tty: bool) -> Result<i32> {
    let _raw = if tty { Some(Raw::begin()?) } else { None };
    let wait = tasks::WaitRequest { container_id: id.into(), exec_id: exec_id.into() };
    let mut waiting_client = client.tasks();
    let wait = client.request(wait);
    let waiting = tokio::spawn(async move { waiting_client.wait(wait).await }); // before the start: nothing is missed
    let start = tasks::StartRequest { container_id: id.into(), exec_id: exec_id.into() };
    client.tasks().start(client.request(start)).await.map_err(said)?;
    if !fifos.stdin.is_empty() {
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        fifos.copy_input(move || drop(ended));
        let mut closing = client.tasks();
        let close =
            client.request(tasks::CloseIoRequest { container_id: id.into(), exec_id: exec_id.into(), stdin: true });
        tokio::spawn(async move {
            let _ = end.await; // dropped at the end of input
            let _ = closing.close_io(close).await; // the process may have ended first
        });
    }
    if tty {
        resize(client, id, exec_id).await;
    }
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()]
        .map(|kind| (kind, signal(kind)));
    let mut window_changes = signal(SignalKind::window_change()).context("watching the terminal's size")?;
    let [(_, int), (_, term), (_, hup), (_, quit)] = &mut signals;
    let (Ok(int), Ok(term), Ok(hup), Ok(quit)) = (int, term, hup, quit) else {
        anyhow::bail!("watching signals failed")
    };
    let mut waiting = waiting;
    let answer = loop {
        tokio::select! {
            answer = &mut waiting => break answer.context("waiting for the process")?.map_err(said)?,
            _ = int.recv() => forward(client, id, exec_id, SignalKind::interrupt()).await,
            _ = term.recv() => forward(client, id, exec_id, SignalKind::terminate()).await,
            _ = hup.recv() => forward(client, id, exec_id, SignalKind::hangup()).await,
            _ = quit.recv() => forward(client, id, exec_id, SignalKind::quit()).await,
            _ = window_changes.recv(), if tty => resize(client, id, exec_id).await,
        }
    };
    fifos.finish();
    Ok(i32::try_from(answer.into_inner().exit_status).unwrap_or(255))
}

async fn forward(client: &Client, id: &str, exec_id: &str, signal: SignalKind) {
    let signal = signal.as_raw_value().unsigned_abs();
    let kill = tasks::KillRequest { container_id: id.into(), exec_id: exec_id.into(), signal, all: false };
    let _ = client.tasks().kill(client.request(kill)).await; // it may have ended this moment
}

async fn resize(client: &Client, id: &str, exec_id: &str) {
    if let Some((width, height)) = window() {
        let resize = tasks::ResizePtyRequest { container_id: id.into(), exec_id: exec_id.into(), width, height };
        let _ = client.tasks().resize_pty(client.request(resize)).await; // it may have ended this moment
    }
}
