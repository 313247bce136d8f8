//! Pull and unpack of an image of three layers and more than 100 MB from a registry on loopback.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::image::{Image, Layer};
use tare_integration::{programs, registry::Registry};

use super::report::{Report, Target};
use super::rounds::Sample;
use crate::sh;

const CLIENT: &str = "newer";
const ROUNDS: usize = 7;

/// # Errors
/// A daemon did not start, or a pull failed.
pub fn rows(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir_in(sh::target())?; // a disk, as images have it, not a tmpfs
    let registry = Registry::start(dir.path())?;
    let image = image()?;
    let size: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
    registry.push("large", "latest", &image)?;
    let reference = registry.reference("large:latest");
    let mut daemons = Vec::new();
    for (name, kind) in [("tared", Kind::Tared), ("containerd", Kind::Containerd("newer"))] {
        let dir = dir.path().join(name);
        fs::create_dir(&dir)?;
        daemons.push((name, Daemon::start(kind, &dir)?));
    }
    for cold in [false, true] {
        let mut samples: Vec<Sample> = daemons
            .iter()
            .map(|(name, _)| Sample { name: (*name).to_owned(), micros: Vec::new(), max_rss: 0 })
            .collect();
        for round in 0..=ROUNDS {
            for ((_, daemon), sample) in daemons.iter().zip(&mut samples) {
                let took = pull_once(daemon, &reference, cold)?;
                if round > 0 {
                    sample.micros.push(took.as_secs_f64() * 1e6);
                }
                sample.max_rss = peak_memory(daemon.pid())?;
            }
        }
        let cache = if cold { "cold" } else { "warm" };
        report.row(
            &format!(
                "pull and unpack {} MB in 3 gzip layers, {cache} cache; memory is the daemon's peak",
                size / 1_000_000
            ),
            &samples,
            &[Target::at_most(1.0, "containerd")],
        );
    }
    report.fact("image", json!({"layers": image.layers.len(), "compressed_bytes": size}));
    Ok(())
}

fn pull_once(daemon: &Daemon, reference: &str, cold: bool) -> Result<Duration> {
    if cold {
        sh::run(&mut Command::new("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    let start = Instant::now();
    sh::output(daemon.ctr(CLIENT)?.args(["image", "pull", "--plain-http", reference]))?;
    let took = start.elapsed();
    sh::output(daemon.ctr(CLIENT)?.args(["image", "rm", "--sync", reference]))?;
    let left = sh::output(daemon.ctr(CLIENT)?.args(["content", "ls", "-q"]))?;
    ensure!(left.is_empty(), "content is left after the image was removed, so the next pull would find it: {left}");
    Ok(took)
}

/// The largest resident memory of a process so far, in KiB.
fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM in status")?;
    Ok(line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// Real programs, libraries and many small files, from the peers' packages: three layers.
fn image() -> Result<Image> {
    let mut layers = Vec::new();
    for parts in [&["bookworm/bin"][..], &["newer/bin", "newer/lib"], &["bookworm/lib", "bookworm/share"]] {
        let mut layer = Layer::default();
        for part in parts {
            let (tree, folder) = part.split_once('/').expect("each part names a tree and a folder below its usr/");
            let usr = programs::peer(tree, "containerd")?;
            let usr = usr.ancestors().nth(2).context("usr/ above usr/bin")?.to_owned();
            add_tree(&mut layer, &usr.join(folder), &part.replace('/', "-"))?;
        }
        layers.push(layer);
    }
    Image::of(layers, &json!({}))
}

fn add_tree(layer: &mut Layer, dir: &Path, name: &str) -> Result<()> {
    layer.folder(name)?;
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        let inside = format!("{name}/{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            add_tree(layer, &entry.path(), &inside)?;
        } else if kind.is_file() {
            layer.file(&inside, 0o644, &fs::read(entry.path())?)?;
        }
    }
    Ok(())
}
