//! `ctr run --rm … true`: through containerd with its own shim and with ours, and through tared.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, registry::Registry};

use super::report::{Report, Target};
use super::rounds::{Contender, take_turns};
use crate::sh;

const CLIENT: &str = "newer";

/// # Errors
/// A daemon did not start, or a contender failed.
pub fn rows(rounds: usize, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let registry = Registry::start(dir.path())?;
    registry.push("busybox", "latest", &image::busybox()?)?;
    let image = registry.reference("busybox:latest");
    let containerd = daemon(Kind::Containerd("newer"), &dir.path().join("containerd"), &image)?;
    let tared = daemon(Kind::Tared, &dir.path().join("tared"), &image)?;

    let run = |daemon: &Daemon, runtime: &str, name: &str, round: usize| {
        let mut command = daemon.ctr(CLIENT).expect("peers were unpacked before");
        command.args(["run", "--rm", "--runtime", runtime, &image, &format!("{name}-{round}"), "true"]);
        command
    };
    let contenders = [
        Contender {
            name: "containerd, tare's shim",
            command: Box::new(|round| run(&containerd, "io.containerd.tare.v2", "ours", round)),
        },
        Contender {
            name: "containerd, runc's shim",
            command: Box::new(|round| run(&containerd, "io.containerd.runc.v2", "theirs", round)),
        },
        Contender { name: "tared", command: Box::new(|round| run(&tared, "io.containerd.tare.v2", "whole", round)) },
    ];
    let samples = take_turns(&contenders, rounds, Duration::from_millis(20))?;
    report.row(
        "ctr run --rm busybox true, 20 ms between starts",
        &samples,
        &[Target::at_most(0.5, "containerd, runc's shim")],
    );
    Ok(())
}

fn daemon(kind: Kind, dir: &std::path::Path, image: &str) -> Result<Daemon> {
    std::fs::create_dir(dir)?;
    let daemon = Daemon::start(kind, dir)?;
    let mut pull: Command = daemon.ctr(CLIENT)?;
    sh::output(pull.args(["image", "pull", "--plain-http", image]))?;
    Ok(daemon)
}
