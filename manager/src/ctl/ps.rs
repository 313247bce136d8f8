//! `tarectl ps`.

use std::time::SystemTime;

use anyhow::Result;
use serde_json::{Value, json};
use tare_proto::containerd::v1::types::{Process, Status};

use super::client::Client;
use super::container::{self, Container};
use super::{age, list};

#[derive(clap::Args)]
pub struct Args {
    /// Show those that do not run too
    #[arg(short, long)]
    all: bool,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// Only the newest ones, running or not
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only the newest one, running or not
    #[arg(short, long)]
    latest: bool,
    /// Do not shorten commands
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: id, name, label, status, exited, ancestor, before, since
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    show: list::Show,
}

const FILTERS: &[&str] = &["id", "name", "label", "status", "exited", "ancestor", "before", "since"];
const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "Names"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
];

pub async fn ps(client: &Client, args: &Args) -> Result<i32> {
    let filters = list::filters(&args.filter, FILTERS)?;
    let mut found = container::list(client).await?;
    let processes = container::processes(client).await?;
    found.sort_by_key(|container| std::cmp::Reverse(created(container))); // the newest first
    let when = |name: &str| found.iter().find(|container| container.id == name).map(created);
    let asked_state = filters.iter().any(|(key, _)| key == "status" || key == "exited");
    let all = args.all || args.latest || args.last.is_some() || asked_state;
    let shown = found.iter().map(|container| (container, processes.get(&container.id)));
    let shown = shown.filter(|(_, process)| all || container::is_live(*process)).filter(|(container, process)| {
        list::passes(&filters, |key, value| match key {
            "id" => container.id.starts_with(value),
            "name" => container.id.contains(value.trim_start_matches('/')),
            "label" => list::has_label(container.labels.iter(), value),
            "status" => container::word(*process) == value,
            "exited" => process
                .is_some_and(|process| process.status() == Status::Stopped && process.exit_status.to_string() == value),
            "ancestor" => {
                container.image == value
                    || crate::registry::Reference::complete(value).is_ok_and(|name| name == container.image)
            }
            "before" => when(value).is_some_and(|other| created(container) < other),
            _ => when(value).is_some_and(|other| created(container) > other),
        })
    });
    let most = if args.latest { 1 } else { args.last.unwrap_or(usize::MAX) };
    let shown = shown.take(most);
    if args.quiet {
        shown.for_each(|(container, _)| println!("{}", container.id));
        return Ok(0);
    }
    let rows: Vec<Value> = shown.map(|(container, process)| row(container, process, args.no_trunc)).collect();
    args.show.print(COLUMNS, &rows)?;
    Ok(0)
}

pub fn created(container: &Container) -> SystemTime {
    container.created_at.and_then(|at| at.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// docker's names for what it shows, and for scripts the facts behind.
fn row(container: &Container, process: Option<&Process>, whole: bool) -> Value {
    const LONGEST: usize = 20;
    let spec = container::spec(container).unwrap_or_default();
    let words: Vec<&str> = spec["process"]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut command = words.join(" ");
    if !whole && command.chars().count() > LONGEST {
        command = command.chars().take(LONGEST - 1).chain(['…']).collect();
    }
    let labels: Vec<String> = container.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let created = created(container);
    json!({
        "ID": container.id,
        "Names": container.id,
        "Image": container.image,
        "Command": format!("{command:?}"),
        "CreatedAt": humantime::format_rfc3339_seconds(created).to_string(),
        "RunningFor": format!("{} ago", age::since(created)),
        "State": container::word(process),
        "Status": status(process),
        "Ports": container.labels.get(container::PORTS).map_or("", String::as_str),
        "Labels": labels.join(","),
        "Networks": container.labels.get(container::NETWORK).map_or("", String::as_str),
        "Pid": process.map_or(0, |process| process.pid),
        "ExitCode": process.filter(|process| process.status() == Status::Stopped).map(|process| process.exit_status),
    })
}

/// `Up 5 minutes`, `Exited (0) 2 hours ago`.
fn status(process: Option<&Process>) -> String {
    let Some(process) = process else { return "Created".into() };
    let up = || age::of_process(process.pid).map_or_else(|| "Up".into(), |age| format!("Up {}", age::words(age)));
    match process.status() {
        Status::Running => up(),
        Status::Paused | Status::Pausing => format!("{} (Paused)", up()),
        Status::Stopped => {
            let at: Option<SystemTime> = process.exited_at.and_then(|at| at.try_into().ok());
            let ago = at.map(|at| format!(" {} ago", age::since(at))).unwrap_or_default();
            format!("Exited ({}){ago}", process.exit_status)
        }
        Status::Created => "Created".into(),
        Status::Unknown => "Dead".into(),
    }
}
