//! `tarectl inspect`: a container or an image in docker's shape, or as the daemon has it.

use std::time::SystemTime;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tare_proto::containerd::v1::types::{Process, Status};

use super::client::Client;
use super::container::{self, Container, Folder};
use super::template::Template;
use super::{age, images, ps};

#[derive(clap::Args)]
pub struct Args {
    /// A template such as '{{.State.Pid}}'
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// In docker's shape, or as the daemon has it
    #[arg(long, value_enum, default_value = "docker")]
    mode: Mode,
    /// Only of this kind
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// Names of containers or images
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    #[value(alias = "dockercompat")]
    Docker,
    Native,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Container,
    Image,
}

pub async fn inspect(client: &Client, args: &Args) -> Result<i32> {
    let template = args.format.as_deref().filter(|format| *format != "json").map(Template::parse).transpose()?;
    let mut shown = Vec::new();
    let mut code = 0;
    for name in &args.names {
        match one(client, args, name).await {
            Ok(value) => shown.push(value),
            Err(error) => code = super::each::report(&error),
        }
    }
    match template {
        Some(template) => {
            for value in &shown {
                println!("{}", template.render(value)?);
            }
        }
        None if args.format.is_some() => shown.iter().for_each(|value| println!("{value}")),
        None => println!("{}", serde_json::to_string_pretty(&shown)?),
    }
    Ok(code)
}

async fn one(client: &Client, args: &Args, name: &str) -> Result<Value> {
    if args.kind != Some(Kind::Image) {
        match container::find(client, name).await {
            Ok(container) => return show(client, args.mode, &container).await,
            Err(error) if args.kind == Some(Kind::Container) => return Err(error),
            Err(_) => {}
        }
    }
    match images::inspect(client, name, args.mode == Mode::Native).await? {
        Some(image) => Ok(image),
        None if args.kind.is_some() => bail!("no such image: {name}"),
        None => bail!("no such object: {name}"),
    }
}

async fn show(client: &Client, mode: Mode, container: &Container) -> Result<Value> {
    let process = container::process(client, &container.id).await?;
    let spec = container::spec(container)?;
    if mode == Mode::Native {
        return Ok(json!({"name": container.id, "image": container.image, "labels": container.labels,
            "snapshotter": container.snapshotter, "snapshotKey": container.snapshot_key,
            "runtime": container.runtime.as_ref().map(|runtime| runtime.name.clone()),
            "status": container::word(process.as_ref()),
            "pid": process.as_ref().map_or(0, |process| process.pid), "spec": spec}));
    }
    let folder = Folder::of(client, &container.id).await?;
    let log = folder.log();
    let label = |name: &str| container.labels.get(name).map_or("", String::as_str);
    let own = |name: &&String| {
        !name.starts_with("tare.dev/") && !name.starts_with("containerd.io/") && !name.starts_with("io.containerd.")
    };
    let labels: serde_json::Map<String, Value> = container
        .labels
        .iter()
        .filter(|(name, _)| own(name))
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let words: Vec<Value> = spec["process"]["args"].as_array().cloned().unwrap_or_default();
    let memory = &spec["linux"]["resources"]["memory"];
    let cpu = &spec["linux"]["resources"]["cpu"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let nano = match (number(&cpu["quota"]), number(&cpu["period"])) {
        (quota @ 1.., period @ 1..) => quota.saturating_mul(1_000_000_000) / period,
        _ => 0,
    };
    Ok(json!({
        "Id": container.id,
        "Name": container.id,
        "Created": time(ps::created(container)),
        "Path": words.first(),
        "Args": words.get(1..).unwrap_or_default(),
        "State": state(process.as_ref()),
        "Image": container.image,
        "LogPath": log,
        "Platform": "linux",
        "HostConfig": {
            "Memory": number(&memory["limit"]), "MemorySwap": number(&memory["swap"]), "NanoCpus": nano,
            "CpuShares": number(&cpu["shares"]), "CpusetCpus": cpu["cpus"].as_str().unwrap_or_default(),
            "PidsLimit": number(&spec["linux"]["resources"]["pids"]["limit"]),
            "AutoRemove": container.labels.contains_key(crate::caretaker::REMOVE),
            "RestartPolicy": {"Name": if label(container::RESTART_POLICY).is_empty() { "no" } else { label(container::RESTART_POLICY) }},
            "ReadonlyRootfs": spec["root"]["readonly"], "NetworkMode": label(container::NETWORK),
        },
        "Mounts": mounts(&spec),
        "Config": {
            "Hostname": spec["hostname"], "Tty": spec["process"]["terminal"], "Env": spec["process"]["env"],
            "Cmd": words, "Image": container.image, "WorkingDir": spec["process"]["cwd"], "Labels": labels,
            "User": format!("{}:{}", number(&spec["process"]["user"]["uid"]), number(&spec["process"]["user"]["gid"])),
            "StopSignal": label(container::STOP_SIGNAL),
        },
        "NetworkSettings": container::network_settings(container, &folder)?,
    }))
}

fn state(process: Option<&Process>) -> Value {
    let live = container::is_live(process);
    let started = process.filter(|_| live).and_then(|process| age::of_process(process.pid));
    let started = started.and_then(|age| SystemTime::now().checked_sub(age));
    let finished = process.and_then(|process| process.exited_at).and_then(|at| at.try_into().ok());
    let never = || "0001-01-01T00:00:00Z".to_owned();
    json!({
        "Status": container::word(process),
        "Running": live,
        "Paused": container::word(process) == "paused",
        "Pid": process.filter(|_| live).map_or(0, |process| process.pid),
        "ExitCode": process.filter(|process| process.status() == Status::Stopped).map_or(0, |process| process.exit_status),
        "StartedAt": started.map_or_else(never, time),
        "FinishedAt": finished.map_or_else(never, time),
    })
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_nanos(at).to_string()
}

/// Those that the user asked for: the others are the same in every container.
fn mounts(spec: &Value) -> Vec<Value> {
    const OWN: &[&str] = &[
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    ];
    let all = spec["mounts"].as_array().into_iter().flatten();
    let asked = all.filter(|mount| !OWN.iter().any(|own| mount["destination"] == *own));
    asked
        .map(|mount| {
            let options: Vec<&str> =
                mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let propagation = options
                .iter()
                .find(|option| option.ends_with("private") || option.ends_with("shared") || option.ends_with("slave"));
            json!({"Type": mount["type"], "Source": mount["source"], "Destination": mount["destination"],
                "Mode": options.join(","), "RW": !options.contains(&"ro") && !options.contains(&"rro"),
                "Propagation": propagation.unwrap_or(&"")})
        })
        .collect()
}
