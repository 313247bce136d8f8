//! `tarectl info`, `events` and `namespace`.

use std::time::SystemTime;

use anyhow::{Result, bail};
use prost_types::Any;
use serde_json::{Value, json};
use tare_proto::any;
use tare_proto::containerd::events as e;
use tare_proto::containerd::services::events::v1::SubscribeRequest;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::introspection::v1::PluginsRequest;
use tare_proto::containerd::services::namespaces::v1 as namespaces;

use super::client::{Client, said};
use super::{container, each, list};

#[derive(clap::Args)]
pub struct InfoArgs {
    #[command(flatten)]
    show: list::Show,
}

#[derive(clap::Args)]
pub struct EventsArgs {
    /// Only those with: container, event, image, type
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// A template such as '{{.Action}} {{.ID}}', or `json`
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(clap::Subcommand)]
pub enum NamespaceCommand {
    /// List namespaces
    #[command(visible_alias = "list")]
    Ls {
        /// Only names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Make a namespace
    Create { names: Vec<String> },
    /// Remove namespaces that are empty
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub async fn info(client: &Client, args: &InfoArgs) -> Result<i32> {
    let containers = container::list(client).await?;
    let processes = container::processes(client).await?;
    let states: Vec<&str> = containers.iter().map(|it| container::word(processes.get(&it.id))).collect();
    let count = |wanted: &str| states.iter().filter(|state| **state == wanted).count();
    let request = client.request(PluginsRequest::default());
    let plugins = client.introspection().plugins(request).await.map_err(said)?.into_inner().plugins;
    let snapshotters: Vec<String> = plugins
        .into_iter()
        .filter(|plugin| plugin.r#type == "io.containerd.snapshotter.v1" && plugin.init_err.is_none())
        .map(|plugin| plugin.id)
        .collect();
    let version = client.version().version(client.request(())).await.map_err(said)?.into_inner().version;
    let server = client.introspection().server(client.request(())).await.map_err(said)?.into_inner();
    let name = rustix::system::uname();
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let facts = json!({
        "ID": server.uuid, "ServerVersion": version, "Namespace": client.namespace, "Address": client.address,
        "Containers": containers.len(), "ContainersRunning": count("running"), "ContainersPaused": count("paused"),
        "ContainersStopped": containers.len() - count("running") - count("paused"),
        "Images": super::images::all(client).await?.len(),
        "Snapshotters": snapshotters.join(" "),
        "CgroupVersion": if unified { "2" } else { "1" },
        "KernelVersion": name.release().to_string_lossy(), "Name": name.nodename().to_string_lossy(),
        "Architecture": name.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    });
    if args.show.is_table() {
        for (key, value) in facts.as_object().into_iter().flatten() {
            println!("{key}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        return Ok(0);
    }
    args.show.print(&[], &[facts])?;
    Ok(0)
}

/// Prints events until it is interrupted.
pub async fn events(client: &Client, args: &EventsArgs) -> Result<i32> {
    let filters = list::filters(&args.filter, &["container", "event", "image", "type"])?;
    let template = args.format.as_deref().filter(|format| *format != "json");
    let template = template.map(super::template::Template::parse).transpose()?;
    let namespace = vec![format!("namespace=={:?}", client.namespace)];
    let request = client.request(SubscribeRequest { filters: namespace });
    let mut events = client.events().subscribe(request).await.map_err(said)?.into_inner();
    while let Some(envelope) = events.message().await.map_err(said)? {
        let id = envelope.event.as_ref().map(subject).unwrap_or_default();
        let (kind, action) = envelope.topic.trim_start_matches('/').split_once('/').unwrap_or((&envelope.topic, ""));
        let kind = match kind {
            "tasks" | "containers" => "container",
            "images" => "image",
            other => other,
        };
        let passes = list::passes(&filters, |key, value| match key {
            "container" => kind == "container" && id == value,
            "image" => kind == "image" && id == value,
            "event" => action == value,
            _ => kind == value,
        });
        if !passes {
            continue;
        }
        let at: SystemTime = envelope.timestamp.and_then(|at| at.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
        let time = humantime::format_rfc3339_nanos(at).to_string();
        let row = json!({"Time": time, "Type": kind, "Action": action, "ID": id, "Topic": envelope.topic});
        match (&template, &args.format) {
            (Some(template), _) => println!("{}", template.render(&row)?),
            (None, Some(_)) => println!("{row}"),
            (None, None) => println!("{time} {kind} {action} {id}"),
        }
    }
    bail!("the daemon went away")
}

/// What an event is about.
fn subject(event: &Any) -> String {
    fn of<M: prost::Message + Default + prost::Name>(event: &Any, id: fn(M) -> String) -> Option<String> {
        any::unpack::<M>(event, &M::full_name()).ok().flatten().map(id)
    }
    of(event, |event: e::TaskCreate| event.container_id)
        .or_else(|| of(event, |event: e::TaskStart| event.container_id))
        .or_else(|| of(event, |event: e::TaskExit| event.container_id))
        .or_else(|| of(event, |event: e::TaskDelete| event.container_id))
        .or_else(|| of(event, |event: e::TaskPaused| event.container_id))
        .or_else(|| of(event, |event: e::TaskResumed| event.container_id))
        .or_else(|| of(event, |event: e::TaskOom| event.container_id))
        .or_else(|| of(event, |event: e::TaskExecAdded| event.container_id))
        .or_else(|| of(event, |event: e::TaskExecStarted| event.container_id))
        .or_else(|| of(event, |event: e::ContainerCreate| event.id))
        .or_else(|| of(event, |event: e::ContainerUpdate| event.id))
        .or_else(|| of(event, |event: e::ContainerDelete| event.id))
        .or_else(|| of(event, |event: e::SnapshotPrepare| event.key))
        .or_else(|| of(event, |event: e::SnapshotCommit| event.name))
        .or_else(|| of(event, |event: e::SnapshotRemove| event.key))
        .or_else(|| of(event, |event: images::ImageCreate| event.name))
        .or_else(|| of(event, |event: images::ImageUpdate| event.name))
        .or_else(|| of(event, |event: images::ImageDelete| event.name))
        .unwrap_or_default()
}

pub async fn namespace(client: &Client, command: &NamespaceCommand) -> Result<i32> {
    match command {
        NamespaceCommand::Ls { quiet } => {
            let request = client.request(namespaces::ListNamespacesRequest::default());
            let found = client.namespaces().list(request).await.map_err(said)?.into_inner().namespaces;
            if *quiet {
                found.iter().for_each(|namespace| println!("{}", namespace.name));
                return Ok(0);
            }
            let labels = |labels: &std::collections::HashMap<String, String>| {
                let mut pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                pairs.sort();
                pairs.join(",")
            };
            let rows: Vec<Value> = found
                .iter()
                .map(|namespace| json!({"Name": namespace.name, "Labels": labels(&namespace.labels)}))
                .collect();
            list::Show::default().print(&[("NAME", "Name"), ("LABELS", "Labels")], &rows)?;
            Ok(0)
        }
        NamespaceCommand::Create { names } => Ok(each::name(names, async |name| {
            let namespace = namespaces::Namespace { name: name.to_owned(), labels: Default::default() };
            let request = namespaces::CreateNamespaceRequest { namespace: Some(namespace) };
            client.namespaces().create(client.request(request)).await.map_err(said)?;
            println!("{name}");
            Ok(())
        })
        .await),
        NamespaceCommand::Rm { names } => Ok(each::name(names, async |name| {
            let request = namespaces::DeleteNamespaceRequest { name: name.to_owned() };
            client.namespaces().delete(client.request(request)).await.map_err(said)?;
            println!("{name}");
            Ok(())
        })
        .await),
    }
}
