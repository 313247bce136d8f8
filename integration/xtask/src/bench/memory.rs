//! Resident memory of a shim: with one container and one exec, and with a pod of ten.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, registry::Registry};

use super::report::Report;
use crate::sh;

const CLIENT: &str = "newer";

/// # Errors
/// The daemon or a container did not start.
pub fn rows(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let registry = Registry::start(dir.path())?;
    registry.push("busybox", "latest", &image::busybox()?)?;
    let image = registry.reference("busybox:latest");
    let daemon = Daemon::start(Kind::Containerd("newer"), dir.path())?;
    sh::output(daemon.ctr(CLIENT)?.args(["image", "pull", "--plain-http", &image]))?;
    for (name, runtime) in
        [("tare's shim", "io.containerd.tare.v2"), ("containerd's runc shim", "io.containerd.runc.v2")]
    {
        let pod = format!("pod-{}", &name[..4]);
        let ids: Vec<String> = (0..10).map(|n| if n == 0 { pod.clone() } else { format!("{pod}-{n}") }).collect();
        for (n, id) in ids.iter().enumerate() {
            let group = format!("io.kubernetes.cri.sandbox-id={pod}");
            let run = ["run", "-d", "--runtime", runtime, "--annotation", &group, &image, id, "sleep", "1000"];
            sh::output(daemon.ctr(CLIENT)?.args(run))?;
            if n == 0 {
                sh::output(daemon.ctr(CLIENT)?.args(["task", "exec", "--exec-id", "one", id, "true"]))?;
                report.fact(&format!("{name}, one container, after one exec"), shim(dir.path(), &pod)?);
            }
        }
        report.fact(&format!("{name}, a pod of ten containers"), shim(dir.path(), &pod)?);
        for id in &ids {
            sh::output(daemon.ctr(CLIENT)?.args(["task", "rm", "--force", id]))?;
            sh::output(daemon.ctr(CLIENT)?.args(["container", "rm", id]))?;
        }
    }
    Ok(())
}

/// Memory and threads of the shim that serves group `id` for the daemon below `dir`.
fn shim(dir: &Path, id: &str) -> Result<Value> {
    let dir = dir.to_string_lossy();
    for entry in fs::read_dir("/proc")? {
        let proc = entry?.path();
        let Ok(line) = fs::read(proc.join("cmdline")) else { continue };
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let ours = words[0].contains("containerd-shim")
            && words.iter().any(|word| word.contains(&*dir))
            && words.iter().any(|word| word == id);
        if ours {
            let field = |file: &str, name: &str| -> Result<u64> {
                let text = fs::read_to_string(proc.join(file))?;
                let line =
                    text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{name} in {file}"))?;
                Ok(line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
            };
            return Ok(json!({
                "rss_kib": field("status", "VmRSS:")?,
                "pss_kib": field("smaps_rollup", "Pss:")?,
                "threads": field("status", "Threads:")?,
            }));
        }
    }
    anyhow::bail!("no shim of {id} runs")
}
