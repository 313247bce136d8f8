//! `tare run` beside crun and runc: each cgroup version in a mount namespace that shows it alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tare_integration::programs;

use super::report::{Report, Target};
use super::rounds::{Contender, take_turns};
use super::view::View;
use super::{bundle, calls};

/// Runs this benchmark again inside each view and collects its rows.
///
/// # Errors
/// A contender failed.
pub fn in_each_view(rounds: usize, gaps: &[u64], report: &mut Report) -> Result<()> {
    let gaps = gaps.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    for view in [View::V2, View::V1] {
        let rounds = rounds.to_string();
        report.follow(&mut inside(view, &["run", "--gaps", &gaps, "--rounds", &rounds])?)?;
    }
    Ok(())
}

/// This benchmark again, in a mount namespace of its own that will show one cgroup version alone.
///
/// # Errors
/// This program does not know where it lies.
pub fn inside(view: View, words: &[&str]) -> Result<Command> {
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe()?);
    inside.args(["bench", "--view", view.name()]).args(words);
    Ok(inside)
}

/// The rows of one view, measured in a mount namespace of our own and handed on.
///
/// # Errors
/// A contender failed.
pub fn rows(view: View, rounds: usize, gaps: &[u64]) -> Result<()> {
    let spec = bundle::default_spec()?; // before the view changes: containerd wants to see all cgroups
    view.enter()?;
    let mut report = Report::handed_on();
    let dir = tempfile::tempdir()?;
    // State is kept in memory, as it is below /run wherever systemd runs: else the disk is measured.
    let memory = tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?;
    for case in cases(view, spec) {
        let bundle = bundle::make(&dir.path().join(case.name.replace(' ', "-")), &case.spec)?;
        if case.floor {
            write_filter(&case.spec, &bundle)?;
        }
        let roots = memory.path().join("roots");
        std::fs::create_dir_all(&roots)?;
        let same = compare(&case, &bundle, &roots)?;
        let (case, bundle, roots) = (&case, &*bundle, &*roots);
        for gap in gaps {
            let mut contenders: Vec<Contender<'_>> = RUNTIMES
                .iter()
                .map(|&runtime| Contender {
                    name: runtime.name,
                    command: Box::new(move |round| run(runtime, case, bundle, roots, round)),
                })
                .collect();
            if case.floor {
                contenders.push(Contender { name: "floor", command: Box::new(move |_| floor(bundle)) });
            }
            let samples = take_turns(&contenders, rounds, Duration::from_millis(*gap))?;
            let title = format!("run busybox true, {}, {gap} ms between starts; {same}", case.name);
            report.row(&title, &samples, &case.targets);
        }
        if case.no_cgroups && case.floor {
            let ours = run(RUNTIMES[0], case, bundle, roots, usize::MAX);
            let value = calls::compare(&ours, &floor(bundle), dir.path())?;
            report.fact("system calls from clone to exec", value);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
pub struct Runtime {
    pub name: &'static str,
    /// The peer tree it comes from; none for ours.
    tree: Option<&'static str>,
}

impl Runtime {
    /// A command line up to the verb. Each runtime has a root of its own below `roots`.
    pub fn command(self, roots: &Path) -> Command {
        let program = match self.tree {
            Some(tree) => programs::peer(tree, self.name),
            None => programs::tare(self.name),
        };
        let mut command = Command::new(program.expect("`bench` unpacks and builds all of them first"));
        command.arg("--root").arg(roots.join(self.name));
        command
    }
}

/// Ours first.
pub const RUNTIMES: &[Runtime] = &[
    Runtime { name: "tare", tree: None },
    Runtime { name: "crun", tree: Some("newer") },
    Runtime { name: "runc", tree: Some("newer") },
];

struct Case {
    name: &'static str,
    spec: Value,
    /// Global options for each runtime that has them.
    no_cgroups: bool,
    targets: Vec<Target>,
    /// Whether the floor program makes the same container.
    floor: bool,
}

fn cases(view: View, mut spec: Value) -> Vec<Case> {
    let peers = [Target::at_most(0.35, "crun"), Target::at_most(0.1, "runc")];
    let case = |name, spec, no_cgroups, targets: &[Target]| Case {
        name,
        spec,
        no_cgroups,
        targets: peers.iter().chain(targets).cloned().collect(),
        floor: !targets.is_empty() || !no_cgroups,
    };
    match view {
        View::V2 => {
            let mut without = spec.clone();
            if let Some(linux) = without["linux"].as_object_mut() {
                linux.remove("resources");
            }
            let mut no_profile = without.clone();
            no_profile["linux"].as_object_mut().map(|linux| linux.remove("seccomp"));
            let mut host_network = without.clone();
            if let Some(namespaces) = host_network["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
            let mut users = without.clone();
            if let Some(namespaces) = users["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({"type": "user"}));
            }
            for ids in ["uidMappings", "gidMappings"] {
                users["linux"][ids] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            }
            vec![
                case("no cgroups", without, true, &[Target::at_most(1.4, "floor")]),
                case("cgroup v2 with a device program", spec, false, &[]),
                case("no cgroups, no profile", no_profile, true, &[]),
                case("no cgroups, the host's network", host_network, true, &[]),
                case("no cgroups, a user namespace", users, true, &[]),
            ]
        }
        View::V1 => {
            let resources = &mut spec["linux"]["resources"];
            resources["memory"] = json!({"limit": 64 << 20});
            resources["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
            resources["pids"] = json!({"limit": 100});
            vec![case("cgroup v1 with memory, cpu and pids limits", spec, false, &[])]
        }
    }
}

fn run(runtime: Runtime, case: &Case, bundle: &Path, roots: &Path, round: usize) -> Command {
    let mut command = runtime.command(roots);
    if case.no_cgroups && runtime.name != "runc" {
        command.args(["--cgroup-manager", "disabled"]);
    }
    command.args(["run", "--bundle"]).arg(bundle).arg(format!("bench-{}-{round}", runtime.name));
    command
}

/// The program that makes the same system calls and does nothing else, under the same filter.
fn floor(bundle: &Path) -> Command {
    let mut command = Command::new(programs::installed().join("floor"));
    command.arg(bundle.join("rootfs")).arg(bundle.join("filter"));
    command
}

/// The filter that `tare` loads for this specification, as the kernel reads it: `struct sock_filter`, one after another.
fn write_filter(spec: &Value, bundle: &Path) -> Result<()> {
    let profile = serde_json::from_value(spec["linux"]["seccomp"].clone())?;
    let program = tare_runtime::seccomp::compile(&profile)?;
    let mut bytes = Vec::new();
    for instruction in program.instructions {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    Ok(std::fs::write(bundle.join("filter"), bytes)?)
}

/// Whether our container sees what the peers' containers see; the row's title carries the answer. Where the peers differ
/// from each other neither is a measure: ours must show all that both show, and nothing that neither shows.
fn compare(case: &Case, bundle: &Path, roots: &Path) -> Result<&'static str> {
    let config = bundle.join("config.json");
    let timed = std::fs::read(&config)?;
    let mut looking = case.spec.clone();
    looking["process"]["args"] = json!(["/bin/sh", "-c", bundle::LOOK]);
    std::fs::write(&config, serde_json::to_vec(&looking)?)?;
    let seen = RUNTIMES
        .iter()
        .map(|runtime| bundle::look(&mut run(*runtime, case, bundle, roots, usize::MAX)))
        .collect::<Result<Vec<_>>>();
    std::fs::write(&config, timed)?;
    let seen: Vec<BTreeSet<String>> = seen?;
    let (ours, peers) = seen.split_first().context("there are runtimes")?;
    let agreed = peers.iter().skip(1).fold(peers[0].clone(), |all, peer| &all & peer);
    let known = peers.iter().fold(BTreeSet::new(), |all, peer| &all | peer);
    for line in &agreed - ours {
        eprintln!("seen with both peers, not with ours: {line}");
    }
    for line in ours - &known {
        eprintln!("seen with ours, with neither peer: {line}");
    }
    let same = agreed.is_subset(ours) && ours.is_subset(&known);
    Ok(if same { "all containers see the same" } else { "VOID: ours does not see what the peers see" })
}
