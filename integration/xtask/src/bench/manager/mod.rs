//! The manager's own work over its gRPC socket, beside containerd's on the same disk: single calls on small and on large
//! stores, bytes in and out, starts, memory, subscribers.
//!
//! Each daemon has a connection that is made once: what is timed is the call, not the client's start.

mod client;
mod events;
mod fill;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tare_integration::daemon::{Daemon, Kind};
use tokio::runtime::Runtime;

use super::report::{Report, Target};
use super::rounds::Sample;
use crate::sh;
use client::Client;
pub use client::connect;

/// Calls of each kind.
const CALLS: usize = 300;
/// Of each kind in a large store.
const MANY: usize = 10_000;
/// Lists, removals and starts of a large store.
const FEW: usize = 11;
/// Calls under way while a store is filled.
const AT_ONCE: usize = 16;
const BLOB: usize = 256 << 20;

/// A daemon, where it lives and who asks it.
struct Contender {
    name: &'static str,
    daemon: Daemon,
    client: Client,
}

/// # Errors
/// A daemon did not start, or a call failed.
pub fn rows(report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let dir = tempfile::tempdir_in(sh::target())?; // a disk, as stores have it, not a tmpfs
    let mut contenders = Vec::new();
    for (name, kind) in [("tared", Kind::Tared), ("containerd", Kind::Containerd("newer"))] {
        let place = dir.path().join(name);
        fs::create_dir(&place)?;
        let daemon = Daemon::start(kind, &place)?;
        let client = runtime.block_on(Client::connect(daemon.socket()))?;
        contenders.push(Contender { name, daemon, client });
    }
    let mut bench = Bench { report, runtime, contenders };
    bench.memory("idle")?;
    bench.calls("in an empty store")?;
    bench.bytes()?;
    bench.images()?;
    bench.calls(&format!("beside {MANY} images and containers"))?;
    bench.snapshots()?;
    bench.calls(&format!("beside {MANY} images, containers and snapshots"))?;
    bench.starts()?;
    bench.removals()?;
    bench.subscribers()?;
    bench.memory("after all that")?;
    collection(report)
}

/// What requests wait for while the collector has much to do: ours alone, since nothing of the peer's can be filled like this.
fn collection(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir_in(sh::target())?;
    let example = ["run", "--quiet", "--release", "--package", "tare-manager", "--example", "collection", "--"];
    let told = sh::output(sh::cargo(&example).arg(dir.path()))?;
    report.fact("a collection, and requests beside it", serde_json::from_str(&told)?);
    Ok(())
}

struct Bench<'r> {
    report: &'r mut Report,
    runtime: Runtime,
    contenders: Vec<Contender>,
}

impl Bench<'_> {
    /// Times what each daemon is asked, in turns.
    fn row(&mut self, title: &str, rounds: usize, call: impl AsyncFn(&mut Client, usize) -> Result<()>) -> Result<()> {
        let mut samples: Vec<Sample> = self.contenders.iter().map(|contender| empty(contender.name)).collect();
        for round in 0..rounds {
            for (contender, sample) in self.contenders.iter_mut().zip(&mut samples) {
                let begun = Instant::now();
                self.runtime.block_on(call(&mut contender.client, round)).with_context(|| title.to_owned())?;
                sample.micros.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        self.keep(title, samples)
    }

    /// Fills a store, several calls at once: the time of all of them, divided by how many they are.
    fn many<Call: Future<Output = Result<()>> + Send + 'static>(
        &mut self,
        title: &str,
        call: impl Fn(Client, usize) -> Call,
    ) -> Result<()> {
        let mut samples = Vec::new();
        for contender in &self.contenders {
            let begun = Instant::now();
            self.runtime.block_on(async {
                let mut running = tokio::task::JoinSet::new();
                for n in 0..MANY {
                    if running.len() == AT_ONCE
                        && let Some(ended) = running.join_next().await
                    {
                        ended??;
                    }
                    running.spawn(call(contender.client.clone(), n));
                }
                while let Some(ended) = running.join_next().await {
                    ended??;
                }
                anyhow::Ok(())
            })?;
            let each = begun.elapsed().as_secs_f64() * 1e6 / MANY as f64;
            samples.push(Sample { micros: vec![each], ..empty(contender.name) });
        }
        self.keep(&format!("{MANY} {title}, {AT_ONCE} at once: each"), samples)
    }

    fn keep(&mut self, title: &str, mut samples: Vec<Sample>) -> Result<()> {
        for (contender, sample) in self.contenders.iter().zip(&mut samples) {
            sample.max_rss = status(contender.daemon.pid(), "VmRSS:")?;
        }
        let half = [Target::at_most(0.5, "containerd")];
        self.report.row(title, &samples, &half);
        Ok(())
    }

    fn memory(&mut self, when: &str) -> Result<()> {
        for contender in &self.contenders {
            let (now, peak) = (status(contender.daemon.pid(), "VmRSS:")?, status(contender.daemon.pid(), "VmHWM:")?);
            self.report
                .fact(&format!("memory of {}, {when}", contender.name), json!({"rss_kib": now, "peak_kib": peak}));
        }
        Ok(())
    }

    fn calls(&mut self, place: &str) -> Result<()> {
        self.row(&format!("Version {place}"), CALLS, Client::version)?;
        self.row(&format!("Containers.Create {place}"), CALLS, Client::create_container)?;
        self.row(&format!("Containers.Get {place}"), CALLS, Client::get_container)?;
        self.row(&format!("Containers.Delete {place}"), CALLS, Client::delete_container)?;
        self.row(&format!("Leases.Create and Delete {place}"), CALLS / 3, Client::lease)?;
        self.row(&format!("Snapshots.Prepare {place}"), CALLS, Client::prepare)?;
        self.row(&format!("Snapshots.Mounts {place}"), CALLS, Client::mounts)?;
        self.row(&format!("Snapshots.Commit {place}"), CALLS, Client::commit)?;
        self.row(&format!("Snapshots.Remove {place}"), CALLS, Client::remove_snapshot)
    }

    fn bytes(&mut self) -> Result<()> {
        let bytes = fill::noise(BLOB);
        let size = BLOB >> 20;
        self.row(&format!("Content.Write of {size} MiB"), 3, async |client, n| client.write(&bytes, n).await)?;
        self.row(&format!("Content.Read of {size} MiB"), 5, async |client, _| client.read(&bytes).await)
    }

    fn images(&mut self) -> Result<()> {
        self.many("images made", Client::create_image)?;
        self.many("containers made", Client::create_kept_container)?;
        self.row(&format!("Images.List of {MANY}"), FEW, Client::list_images)?;
        self.row(&format!("Containers.List of {MANY}"), FEW, Client::list_containers)
    }

    fn snapshots(&mut self) -> Result<()> {
        self.many("snapshots prepared", Client::prepare_kept)?;
        self.row(&format!("Snapshots.List of {MANY}"), FEW, Client::list_snapshots)
    }

    /// From the start of the program until a call is answered, after a kill.
    fn starts(&mut self) -> Result<()> {
        let mut samples: Vec<Sample> = self.contenders.iter().map(|contender| empty(contender.name)).collect();
        for _ in 0..FEW {
            for (contender, sample) in self.contenders.iter_mut().zip(&mut samples) {
                let begun = Instant::now();
                contender.daemon.crash_and_restart()?;
                contender.client = self.runtime.block_on(Client::connect(contender.daemon.socket()))?;
                self.runtime.block_on(contender.client.version(0))?;
                sample.micros.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        self.keep(&format!("kill and start with {MANY} images, containers and snapshots"), samples)
    }

    fn removals(&mut self) -> Result<()> {
        self.row(&format!("Images.Delete with a collection, of {MANY}"), FEW, Client::delete_image)
    }

    fn subscribers(&mut self) -> Result<()> {
        let mut samples = Vec::new();
        for contender in &self.contenders {
            let took = self.runtime.block_on(events::told(&contender.daemon.socket()))?;
            samples.push(Sample { micros: vec![took.as_secs_f64() * 1e6], ..empty(contender.name) });
        }
        self.keep(
            &format!("{} events to {} subscribers, of which half never read", events::EVENTS, events::SUBSCRIBERS),
            samples,
        )
    }
}

fn empty(name: &str) -> Sample {
    Sample { name: name.to_owned(), micros: Vec::new(), max_rss: 0 }
}

/// A line of a process's status, in KiB.
pub fn status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("{field} in status"))?;
    Ok(line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// A daemon that does not answer in this time has failed.
const PATIENCE: Duration = Duration::from_secs(120);
