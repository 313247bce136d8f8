//! `tarectl run`, `start` and `attach`: a container's first process, in the foreground or not.

use anyhow::{Context as _, Result, bail, ensure};

use super::attend::{Attendance, Ended, Output};
use super::client::Client;
use super::container::{self, Container, Folder};
use super::keys::DetachKeys;
use super::remove::{self, Removal};
use super::{create, lifecycle, terminal};

#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Leave the container running and print its name
    #[arg(short, long)]
    detach: bool,
    /// The keys that leave a container with a terminal running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass signals on, unless there is a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    create: create::Args,
}

#[derive(clap::Args)]
pub struct StartArgs {
    /// Show the output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    #[arg(required = true)]
    containers: Vec<String>,
}

#[derive(clap::Args)]
pub struct AttachArgs {
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on, unless there is a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    container: String,
}

pub async fn run(client: &Client, args: &Args) -> Result<i32> {
    let flags = &args.create.flags;
    if !args.detach {
        terminal::check(flags.interactive, flags.tty)?;
    }
    let container = create::make(client, &args.create, args.detach).await?;
    let removed = if flags.rm && !args.detach { Some(Removal::expect(client, &container.id).await?) } else { None };
    if let Err(error) = container::create_task(client, &container).await {
        return Err(fail(client, &container, flags.rm, error).await);
    }
    if args.detach {
        if let Err(error) = container::start_task(client, &container.id, "").await {
            return Err(fail(client, &container, flags.rm, error).await);
        }
        println!("{}", container.id);
        return Ok(0);
    }
    let foreground =
        Foreground { input: flags.interactive, close: true, proxy: args.sig_proxy, keys: &args.detach_keys };
    let ended = foreground.attend(client, &container, true).await;
    match (ended, removed) {
        (Err(error), _) => Err(fail(client, &container, flags.rm, error).await),
        (Ok(Ended::Exit(code)), Some(removed)) => {
            removed.wait(client).await?;
            Ok(code)
        }
        (Ok(Ended::Exit(code) | Ended::Left(code)), _) => Ok(code),
    }
}

async fn is_live(client: &Client, id: &str) -> bool {
    container::process(client, id).await.is_ok_and(|process| container::is_live(process.as_ref()))
}

/// A container whose program could not be started stays, as docker's does, unless it was to be removed.
async fn fail(client: &Client, container: &Container, remove: bool, error: anyhow::Error) -> anyhow::Error {
    let undone = if remove {
        remove::remove(client, &container.id, true).await
    } else {
        container::delete_task(client, &container.id).await
    };
    match undone {
        Ok(()) => error,
        Err(more) => error.context(format!("cleaning up: {more:#}")),
    }
}

/// What a client in the foreground does for a container.
struct Foreground<'a> {
    input: bool,
    close: bool,
    proxy: bool,
    keys: &'a DetachKeys,
}

impl Foreground<'_> {
    /// The task must have been created.
    async fn attend(&self, client: &Client, container: &Container, start: bool) -> Result<Ended> {
        let folder = Folder::of(client, &container.id).await?;
        let tty = container::spec(container)?["process"]["terminal"] == true;
        let output = Output::begin(&folder.log())?;
        let input = folder.input();
        let attendance = Attendance {
            client,
            id: &container.id,
            exec: "",
            tty,
            proxy: self.proxy && !tty,
            input: Some(input).filter(|input| self.input && input.exists()),
            close: self.close,
            keys: self.keys.clone(),
        };
        let ended = attendance.attend(start).await?;
        if let Ended::Exit(_) = ended {
            output.finish().await;
        }
        Ok(ended)
    }
}

pub async fn start(client: &Client, args: &StartArgs) -> Result<i32> {
    let foreground = args.attach || args.interactive;
    ensure!(!foreground || args.containers.len() == 1, "only one container can be started and attached to");
    let mut code = 0;
    for name in &args.containers {
        let mut container = container::find(client, name).await?;
        if is_live(client, &container.id).await {
            println!("{}", container.id);
            continue;
        }
        lifecycle::prepare_start(client, &mut container).await?;
        container::create_task(client, &container).await?;
        if foreground {
            let attending = Foreground { input: args.interactive, close: true, proxy: true, keys: &args.detach_keys };
            let (Ended::Exit(ended) | Ended::Left(ended)) = attending.attend(client, &container, true).await?;
            code = ended;
        } else {
            container::start_task(client, &container.id, "").await?;
            println!("{}", container.id);
        }
    }
    Ok(code)
}

pub async fn attach(client: &Client, args: &AttachArgs) -> Result<i32> {
    let container = container::find(client, &args.container).await?;
    let state = container::process(client, &container.id).await?;
    match container::word(state.as_ref()) {
        "running" => {}
        "paused" => bail!("container {} is paused: unpause it first", container.id),
        _ => bail!("container {} is not running: start it first", container.id),
    }
    let no_log = || format!("container {} was not made by tarectl: its output goes elsewhere", container.id);
    container.labels.get(container::LOG).with_context(no_log)?;
    let keys = &args.detach_keys;
    let foreground = Foreground { input: !args.no_stdin, close: false, proxy: args.sig_proxy, keys };
    let (Ended::Exit(code) | Ended::Left(code)) = foreground.attend(client, &container, false).await?;
    Ok(code)
}
