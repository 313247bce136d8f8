//! A kubelet's calls: tared beside containerd's CRI, on networks of the same kind, each with its own shim and runtime.
//!
//! First pods that live one after another, each call timed; then a hundred at once in both, whose lists, statistics,
//! polling and memory are measured while they idle; then what a container's log takes.

mod crowd;
mod host;
mod node;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tare_integration::daemon::Kind;
use tare_integration::image::{self, Image, Layer};
use tare_integration::{programs, registry::Registry};

use super::report::{Report, Target};
use super::rounds::Sample;
use crate::install;
use node::Node;

/// Rounds that warm the caches and are not counted.
const WARM_UP: usize = 3;
/// What a container writes for the row of throughput, in lines of 128 bytes.
const OUTPUT: usize = 256 << 20;
const LAST: &str = "the end\n";

/// The peer that targets are about.
const PEER: &str = "containerd";
const EXEC: &str = "ExecSync of true";
const FIRST_LINE: &str = "from RunPodSandbox to the first line in the log";
/// What takes part in a pod's start.
const START: &[&str] = &["RunPodSandbox", "CreateContainer", "StartContainer", FIRST_LINE];

/// Measures by a client that is built for release, as what it asks is: one that takes longer to read a list than a daemon
/// to make it would hide the daemon.
///
/// # Errors
/// A daemon did not start, or refused a call.
pub fn in_release(rounds: usize, report: &mut Report) -> Result<()> {
    let client = install::build("release", "xtask", "xtask")?;
    report.follow(Command::new(client).args(["bench", "--cri", "--rounds", &rounds.to_string()]))
}

/// The rows, handed on.
///
/// # Errors
/// As [`in_release`].
pub fn rows(rounds: usize) -> Result<()> {
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    client.block_on(measure(rounds, &mut Report::handed_on()))
}

async fn measure(rounds: usize, report: &mut Report) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tare-bench.").tempdir()?;
    let registry = Registry::start(dir.path())?;
    registry.push("busybox", "latest", &image::busybox()?)?;
    registry.push("pause", "latest", &pause()?)?;
    let mut nodes = [
        Node::start("tared", Kind::Tared, dir.path(), &registry).await?,
        Node::start(PEER, Kind::Containerd("newer"), dir.path(), &registry).await?,
    ];
    let measured = async {
        lives(&mut nodes, rounds, report).await?;
        logs(&mut nodes, report).await?;
        crowd::rows(&mut nodes, report).await
    }
    .await;
    let mut outcome = measured;
    for node in &mut nodes {
        outcome = outcome.and(node.clear().await);
    }
    outcome
}

/// What holds a pod's namespaces for containerd.
fn pause() -> Result<Image> {
    let mut layer = Layer::default();
    layer.file("pause", 0o755, &std::fs::read(programs::peer("bookworm", "busybox")?)?)?;
    layer.link("sleep", "pause")?;
    Image::of(vec![layer], &json!({"Entrypoint": ["/sleep", "1000000"]}))
}

/// Pods that come and go one after another; a row for each call.
async fn lives(nodes: &mut [Node], rounds: usize, report: &mut Report) -> Result<()> {
    let mut rows: Vec<(&str, Vec<Sample>)> = Vec::new();
    for round in 0..rounds + WARM_UP {
        for turn in 0..nodes.len() {
            let index = (turn + round) % nodes.len();
            let names: Vec<&str> = nodes.iter().map(|node| node.name).collect();
            for (n, (call, took)) in life(&mut nodes[index], &format!("l{round}")).await?.into_iter().enumerate() {
                if rows.len() == n {
                    let empty = |name: &&str| Sample { name: (*name).to_owned(), micros: Vec::new(), max_rss: 0 };
                    rows.push((call, names.iter().map(empty).collect()));
                }
                if round >= WARM_UP {
                    rows[n].1[index].micros.push(took.as_secs_f64() * 1e6);
                }
            }
        }
    }
    for (call, samples) in rows {
        let ratio = match call {
            EXEC => Some(0.4),
            call if START.contains(&call) => Some(0.5),
            _ => None,
        };
        let targets: Vec<Target> = ratio.map(|ratio| Target::at_most(ratio, PEER)).into_iter().collect();
        report.row(&format!("CRI: {call}"), &samples, &targets);
    }
    Ok(())
}

/// A pod from nothing to nothing, with what each call took.
async fn life(node: &mut Node, name: &str) -> Result<Vec<(&'static str, Duration)>> {
    let mut took = Vec::new();
    let begin = Instant::now();
    let mut last = begin;
    let mut lap = |call: &'static str| {
        took.push((call, last.elapsed()));
        last = Instant::now();
    };
    let pod = node.run(name).await?;
    lap("RunPodSandbox");
    let container = node.create(&pod, name, "echo ready; exec sleep 1000000").await?;
    lap("CreateContainer");
    node.start_container(&container).await?;
    lap("StartContainer");
    node.first_line(name)?;
    let first_line = begin.elapsed();
    lap("");
    node.exec(&container).await?;
    lap(EXEC);
    node.stop_container(&container).await?;
    lap("StopContainer, which kills");
    node.remove_container(&container).await?;
    lap("RemoveContainer");
    node.stop(&pod).await?;
    lap("StopPodSandbox");
    node.remove(&pod).await?;
    lap("RemovePodSandbox");
    took.retain(|(call, _)| !call.is_empty());
    took.push((FIRST_LINE, first_line));
    Ok(took)
}

/// How fast a container's log is written.
async fn logs(nodes: &mut [Node], report: &mut Report) -> Result<()> {
    for node in nodes {
        let file = node.dir.join("lines");
        std::fs::write(&file, format!("{}\n", "x".repeat(127)).repeat(OUTPUT / 128) + LAST)?;
        let pod = node.run("logs").await?;
        let container = node.create_with(&pod, "logs", "cat /lines", Some(&file)).await?;
        let spent = |node: &Node| {
            Ok::<_, anyhow::Error>([
                host::processor_time(node.daemon.pid())?,
                host::Shims::of(&node.dir)?.processor_time()?,
            ])
        };
        let before = spent(node)?;
        let begin = Instant::now();
        node.start_container(&container).await?;
        node.ended(&container).await?;
        let log = node.log("logs");
        let limit = begin + Duration::from_secs(60);
        while !ends_with(&log, LAST)? {
            ensure!(Instant::now() < limit, "{} is not whole after a minute", log.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        let seconds = begin.elapsed().as_secs_f64();
        // containerd writes the log itself, ours the shim's writer.
        let after = spent(node)?;
        let millis = |index: usize| after[index].saturating_sub(before[index]).as_millis();
        let value = json!({
            "mb_per_s": OUTPUT as f64 / 1e6 / seconds, "daemon_cpu_ms": millis(0), "shims_cpu_ms": millis(1),
        });
        report.fact(&format!("CRI: {}, a log of 256 MiB in lines of 128 bytes", node.name), value);
        node.clear().await?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

fn ends_with(file: &Path, text: &str) -> Result<bool> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(text.len() as u64)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end == text.as_bytes())
}
