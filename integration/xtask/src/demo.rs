//! `cargo xtask demo`: an image, a registry, a daemon and a container, all private, from nothing and back to nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::inventory::Inventory;
use tare_integration::{image, programs, registry::Registry};

use crate::{install, peers, sh};

const NAME: &str = "busybox";
const SCRIPT: &str = r#"echo "hello from $(hostname), process $$ of this container"
echo "GREETING is $GREETING"
if [ -e /sys/fs/cgroup/memory.max ]; then limit=$(cat /sys/fs/cgroup/memory.max)
else limit=$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes); fi
echo "memory limit: $limit bytes"
for n in 1 2 3; do echo "working: $n of 3"; sleep 0.1; done
exit 7"#;

pub fn run() -> Result<()> {
    println!("building release binaries (the first time takes a few minutes)");
    install::run(programs::installed().parent().expect("bin has a parent"))?;
    peers::unpack()?;

    let dir = tempfile::Builder::new().prefix("tare-demo.").tempdir()?;
    let container = format!("tare-demo-{}", std::process::id());
    println!("everything private to this run lies below {}", dir.path().display());
    let mut stages = Stages::default();

    println!("\n* an image `{NAME}`, made here from Debian's busybox-static, in Debian's docker-registry on loopback");
    let registry = stages.time("registry and image", || {
        let registry = Registry::start(dir.path())?;
        registry.push(NAME, "latest", &image::busybox()?)?;
        Ok(registry)
    })?;
    let reference = registry.reference(&format!("{NAME}:latest"));

    println!("* a private tared");
    let daemon = stages.time("start tared", || Daemon::start(Kind::Tared, dir.path()))?;

    println!("* tarectl pull {reference}");
    stages.time("pull and unpack", || sh::run(daemon.tarectl()?.args(["pull", &reference])))?;

    let mut run = daemon.tarectl()?;
    run.args([
        "run",
        "--rm",
        "--net",
        "none",
        "--name",
        &container,
        "-e",
        "GREETING=good morning",
        "-m",
        "64m",
        "--hostname",
        "demo",
    ]);
    run.args([&reference, "sh", "-c", SCRIPT]);
    println!("* tarectl run --rm -e GREETING='good morning' -m 64m --hostname demo {reference} sh -c …\n");
    let status = stages.time("run the container", || Ok(run.status()?))?;
    println!("\n  it ended with exit code {}", status.code().unwrap_or(-1));
    ensure!(status.code() == Some(7), "the script ends with 7:\n{}", daemon.log());

    let private = dir.path().to_string_lossy().into_owned();
    stages.time("clean up", || {
        drop(daemon);
        drop(registry);
        Ok(dir.close()?)
    })?;
    let left = Inventory::of(&[&private, &container]);
    ensure!(left.is_empty(), "something was left behind: {left:#?}");
    stages.print();
    println!("nothing is left: no process, mount, cgroup or file");
    Ok(())
}

/// How long each stage took.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration)>);

impl Stages {
    fn time<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let made = stage()?;
        self.0.push((name, start.elapsed()));
        Ok(made)
    }

    fn print(&self) {
        println!();
        for (name, took) in &self.0 {
            println!("  {name:<20} {:>8.1} ms", took.as_secs_f64() * 1e3);
        }
    }
}
