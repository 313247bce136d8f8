//! A hundred pods with a container each, in both daemons at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tare_proto::runtime::v1 as pb;
use tokio::task::JoinSet;

use super::PEER;
use super::host::{Shims, processor_time, proportional_set_size};
use super::node::Node;
use crate::bench::report::{Report, Target};
use crate::bench::rounds::Sample;

const PODS: usize = 100;
const AT_ONCE: usize = 30;
const ROUNDS: usize = 50;
/// How long a daemon is asked once a second, as the kubelet does.
const POLLED: u64 = 15;

pub async fn rows(nodes: &mut [Node], report: &mut Report) -> Result<()> {
    let mut together = Vec::new();
    for node in nodes.iter_mut() {
        let took = fill(node, 0..AT_ONCE).await?;
        together.push(Sample { name: node.name.into(), micros: vec![took.as_secs_f64() * 1e6], max_rss: 0 });
        fill(node, AT_ONCE..PODS).await?;
    }
    report.row(
        &format!("CRI: {AT_ONCE} pods with a container each, at once"),
        &together,
        &[Target::at_most(0.5, PEER)],
    );
    lists(nodes, report).await?;
    let (mut spent, mut held) = (Vec::new(), Vec::new());
    for node in nodes.iter_mut() {
        spent.push(polling(node, report).await?);
        held.push(memory(node, report)?);
    }
    report.fact(
        "CRI: tared's part of containerd's",
        json!({
            "daemon's processor time when polled": spent[0] / spent[1],
            "memory of the node's side, target 0.25": held[0] as f64 / held[1] as f64,
        }),
    );
    let mut ends = Vec::new();
    for node in nodes.iter_mut() {
        let begin = Instant::now();
        drain(node).await?;
        ends.push(Sample { name: node.name.into(), micros: vec![begin.elapsed().as_secs_f64() * 1e6], max_rss: 0 });
    }
    report.row(&format!("CRI: {PODS} pods stopped and removed, at once"), &ends, &[]);
    Ok(())
}

/// Pods and containers, as many at once as a kubelet makes.
async fn fill(node: &mut Node, numbers: std::ops::Range<usize>) -> Result<Duration> {
    let begin = Instant::now();
    let mut making = JoinSet::new();
    for number in numbers {
        if making.len() == AT_ONCE {
            making.join_next().await.context("one is being made")???;
        }
        let mut one = node.share();
        making.spawn(async move {
            let name = format!("c{number}");
            let pod = one.run(&name).await?;
            let container = one.create(&pod, &name, "exec sleep 1000000").await?;
            one.start_container(&container).await
        });
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    Ok(begin.elapsed())
}

async fn drain(node: &mut Node) -> Result<()> {
    let pods = node.client.list_pod_sandbox(pb::ListPodSandboxRequest::default()).await?.into_inner().items;
    let mut ending = JoinSet::new();
    for pod in pods {
        let mut one = node.share();
        ending.spawn(async move {
            one.stop(&pod.id).await?;
            one.remove(&pod.id).await
        });
    }
    while let Some(ended) = ending.join_next().await {
        ended??;
    }
    Ok(())
}

/// The calls that list, with a hundred of each.
async fn lists(nodes: &mut [Node], report: &mut Report) -> Result<()> {
    for (title, what) in [
        ("ListPodSandbox", List::Pods),
        ("ListContainers", List::Containers),
        ("ListContainerStats", List::ContainerStats),
        ("ListPodSandboxStats", List::PodStats),
    ] {
        let sample = |node: &Node| Sample { name: node.name.into(), micros: Vec::new(), max_rss: 0 };
        let mut samples: Vec<Sample> = nodes.iter().map(sample).collect();
        for round in 0..ROUNDS {
            for turn in 0..nodes.len() {
                let index = (turn + round) % nodes.len();
                let begin = Instant::now();
                let count =
                    what.ask(&mut nodes[index]).await.with_context(|| format!("{}: {title}", nodes[index].name))?;
                samples[index].micros.push(begin.elapsed().as_secs_f64() * 1e6);
                ensure!(count == PODS, "{}: {title} shows {count} of {PODS}", nodes[index].name);
            }
        }
        report.row(&format!("CRI: {title} with {PODS} pods"), &samples, &[Target::at_most(0.3, PEER)]);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum List {
    Pods,
    Containers,
    ContainerStats,
    PodStats,
}

impl List {
    async fn ask(self, node: &mut Node) -> Result<usize> {
        let client = &mut node.client;
        Ok(match self {
            List::Pods => client.list_pod_sandbox(pb::ListPodSandboxRequest::default()).await?.into_inner().items.len(),
            List::Containers => {
                client.list_containers(pb::ListContainersRequest::default()).await?.into_inner().containers.len()
            }
            List::ContainerStats => {
                let request = pb::ListContainerStatsRequest::default();
                client.list_container_stats(request).await?.into_inner().stats.len()
            }
            List::PodStats => {
                let request = pb::ListPodSandboxStatsRequest::default();
                client.list_pod_sandbox_stats(request).await?.into_inner().stats.len()
            }
        })
    }
}

/// Processor time of a daemon that is asked as by an idle kubelet.
async fn polling(node: &mut Node, report: &mut Report) -> Result<f64> {
    let shims = Shims::of(&node.dir)?;
    let (daemon, helpers) = (processor_time(node.daemon.pid())?, shims.processor_time()?);
    for _ in 0..POLLED {
        List::Pods.ask(node).await?;
        List::Containers.ask(node).await?;
        node.client.status(pb::StatusRequest { verbose: false }).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let millis = |spent: Duration| spent.as_secs_f64() * 1e3 / POLLED as f64;
    let daemon = millis(processor_time(node.daemon.pid())?.saturating_sub(daemon));
    let helpers = millis(shims.processor_time()?.saturating_sub(helpers));
    let value = json!({"daemon_ms_per_s": daemon, "shims_ms_per_s": helpers});
    report.fact(&format!("CRI: {}, processor time at {PODS} idle pods that are polled each second", node.name), value);
    Ok(daemon)
}

/// What a node costs beside its containers.
fn memory(node: &Node, report: &mut Report) -> Result<u64> {
    let daemon = proportional_set_size(node.daemon.pid())?;
    let shims = Shims::of(&node.dir)?;
    let (own, helpers) = (shims.proportional_set_size()?, shims.helpers_proportional_set_size()?);
    let value = json!({
        "daemon_kib": daemon, "shims_kib": own, "pods_own_processes_kib": helpers, "all_kib": daemon + own + helpers,
    });
    report.fact(&format!("CRI: {}, memory at {PODS} idle pods", node.name), value);
    Ok(daemon + own + helpers)
}
