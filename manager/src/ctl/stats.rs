//! `tarectl stats`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tare_proto::any;
use tare_proto::containerd::services::tasks::v1 as tasks;
use tare_proto::io::containerd::cgroups::{v1, v2};

use super::client::{Client, said};
use super::{container, list, size};

#[derive(clap::Args)]
pub struct Args {
    /// Once, and not again and again
    #[arg(long)]
    no_stream: bool,
    /// All that run, if none is named
    containers: Vec<String>,
    #[command(flatten)]
    show: list::Show,
}

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("CPU TIME", "CPUTime"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("PIDS", "PIDs"),
];
/// Between two looks: without the first there is no percentage.
const INTERVAL: Duration = Duration::from_millis(500);

pub async fn stats(client: &Client, args: &Args) -> Result<i32> {
    let mut names = Vec::new();
    for name in &args.containers {
        let id = container::find(client, name).await?.id;
        container::running(client, &id).await?;
        names.push(id);
    }
    let stream = !args.no_stream && args.show.is_table() && rustix::termios::isatty(rustix::stdio::stdout());
    let mut before = look(client, &names).await?;
    loop {
        let since = Instant::now();
        tokio::time::sleep(INTERVAL).await;
        let now = look(client, &names).await?;
        let mut rows: Vec<Value> =
            now.iter().map(|(id, used)| row(id, used, before.get(id), since.elapsed())).collect();
        rows.sort_by_key(|row| row["Name"].to_string());
        if stream {
            print!("\x1b[H\x1b[2J"); // home, and clear
        }
        args.show.print(COLUMNS, &rows)?;
        if !stream {
            return Ok(0);
        }
        before = now;
    }
}

async fn look(client: &Client, names: &[String]) -> Result<HashMap<String, Used>> {
    let filters = names.iter().map(|id| format!("id=={id:?}")).collect();
    let request = client.request(tasks::MetricsRequest { filters });
    let metrics = client.tasks().metrics(request).await.map_err(said)?.into_inner().metrics;
    Ok(metrics.into_iter().map(|metric| (metric.id, used(metric.data.as_ref()))).collect())
}

#[allow(clippy::cast_precision_loss)] // for the eye
fn row(id: &str, used: &Used, before: Option<&Used>, time: Duration) -> Value {
    let percent = |part: f64, whole: f64| if whole > 0.0 { part / whole * 100.0 } else { 0.0 };
    let spent = used.cpu.saturating_sub(before.map_or(used.cpu, |before| before.cpu));
    json!({
        "Name": id, "ID": id, "Container": id,
        "CPUPerc": format!("{:.2}%", percent(spent as f64, time.as_nanos() as f64)),
        "CPUTime": format!("{:.2}s", used.cpu as f64 / 1e9),
        "MemUsage": format!("{} / {}", size::show(used.memory), size::show(used.limit)),
        "MemPerc": format!("{:.2}%", percent(used.memory as f64, used.limit as f64)),
        "PIDs": used.pids,
        "CpuNanoseconds": used.cpu, "MemoryBytes": used.memory,
    })
}

#[derive(Default)]
struct Used {
    /// Nanoseconds.
    cpu: u64,
    /// Bytes, without what the kernel would give back.
    memory: u64,
    /// Bytes: the container's limit, or the machine's memory.
    limit: u64,
    pids: u64,
}

fn used(data: Option<&prost_types::Any>) -> Used {
    let Some(data) = data else { return Used::default() };
    let machine = machine_memory();
    if let Ok(Some(metrics)) = any::unpack::<v1::Metrics>(data, "io.containerd.cgroups.v1.Metrics") {
        let memory = metrics.memory.unwrap_or_default();
        let usage = memory.usage.unwrap_or_default();
        return Used {
            cpu: metrics.cpu.and_then(|cpu| cpu.usage).map_or(0, |usage| usage.total),
            memory: usage.usage.saturating_sub(memory.total_inactive_file),
            limit: usage.limit.min(machine),
            pids: metrics.pids.map_or(0, |pids| pids.current),
        };
    }
    if let Ok(Some(metrics)) = any::unpack::<v2::Metrics>(data, "io.containerd.cgroups.v2.Metrics") {
        let memory = metrics.memory.unwrap_or_default();
        return Used {
            cpu: metrics.cpu.map_or(0, |cpu| cpu.usage_usec * 1000),
            memory: memory.usage.saturating_sub(memory.inactive_file),
            limit: memory.usage_limit.min(machine),
            pids: metrics.pids.map_or(0, |pids| pids.current),
        };
    }
    Used::default()
}

/// All memory of this machine, in bytes.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}
