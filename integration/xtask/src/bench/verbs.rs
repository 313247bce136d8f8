//! The runtime's commands one by one, and many containers: at once, one after another, and all there at the same time.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::report::{Report, Target};
use super::rounds::{Sample, time, time_in_turns};
use super::runtimes::{RUNTIMES, Runtime, inside};
use super::view::View;
use super::{bundle, smallest};

/// Idle before each, as in a node that starts a container now and then.
const GAP: Duration = Duration::from_millis(5);
const AT_ONCE: usize = 50;

/// # Errors
/// A contender failed.
pub fn in_one_view(rounds: usize, report: &mut Report) -> Result<()> {
    report.follow(&mut inside(View::V1, &["verbs", "--rounds", &rounds.to_string()])?)
}

/// The rows, measured in a mount namespace of our own and handed on. Every container has cgroups, on which all three
/// runtimes agree in this view.
///
/// # Errors
/// A contender failed.
pub fn rows(view: View, rounds: usize) -> Result<()> {
    let spec = bundle::default_spec()?; // before the view changes: containerd wants to see all cgroups
    view.enter()?;
    let mut report = Report::handed_on();
    let dir = tempfile::tempdir()?;
    let memory = tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?; // as in `runtimes`
    let make = |name: &str, spec: &Value| bundle::make(&dir.path().join(name), spec);
    let ends = make("ends", &spec)?;
    let mut staying = spec.clone();
    staying["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let stays = make("stays", &staying)?;
    let mut plain = staying;
    if let Some(namespaces) = plain["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network"); // thousands of which take the kernel minutes
    }
    let plain = make("plain", &plain)?;
    let roots = memory.path();

    report.row("create, start and delete", &lives(&ends, roots, rounds)?, &targets());
    one_container(&stays, roots, rounds, &mut report)?;
    at_once(&ends, roots, rounds.div_ceil(10), &mut report)?;
    one_after_another(&ends, roots, 10 * rounds, &mut report)?;
    list(&plain, roots, 10 * rounds, &mut report)?;
    smallest::row(&spec, dir.path(), roots, &mut report)
}

fn targets() -> Vec<Target> {
    vec![Target::at_most(0.35, "crun"), Target::at_most(0.1, "runc")]
}

fn names() -> Vec<&'static str> {
    RUNTIMES.iter().map(|runtime| runtime.name).collect()
}

/// A container's name: its cgroups have it, so that it is no other runtime's.
fn id(runtime: Runtime, name: &str) -> String {
    format!("bench-{}-{name}", runtime.name)
}

fn verb(runtime: Runtime, roots: &Path, words: &[&str]) -> Command {
    let mut command = runtime.command(roots);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn with_bundle(runtime: Runtime, roots: &Path, bundle: &Path, words: &[&str], id: &str) -> Command {
    let mut command = verb(runtime, roots, words);
    command.arg("--bundle").arg(bundle).arg(id);
    command
}

/// A whole life in three commands.
fn lives(bundle: &Path, roots: &Path, rounds: usize) -> Result<Vec<Sample>> {
    time_in_turns(&names(), rounds, |index, round| {
        let runtime = RUNTIMES[index];
        let id = id(runtime, &format!("life-{round}"));
        std::thread::sleep(GAP);
        let created = time(&mut with_bundle(runtime, roots, bundle, &["create"], &id))?;
        let started = time(&mut verb(runtime, roots, &["start", &id]))?;
        let deleted = time(&mut verb(runtime, roots, &["delete", "--force", &id]))?;
        Ok(created + started + deleted)
    })
}

/// What is done with a container that runs.
fn one_container(bundle: &Path, roots: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    for runtime in RUNTIMES {
        time(&mut with_bundle(*runtime, roots, bundle, &["run", "--detach"], &id(*runtime, "stays")))?;
    }
    for (name, words) in [("exec", &["/bin/true"][..]), ("kill", &["URG"]), ("state", &[])] {
        let samples = time_in_turns(&names(), rounds, |index, _| {
            std::thread::sleep(GAP);
            let id = id(RUNTIMES[index], "stays");
            time(verb(RUNTIMES[index], roots, &[name, &id]).args(words))
        })?;
        report.row(name, &samples, &targets());
    }
    RUNTIMES.iter().try_for_each(|runtime| remove(*runtime, roots, &id(*runtime, "stays")))
}

fn remove(runtime: Runtime, roots: &Path, id: &str) -> Result<()> {
    time(&mut verb(runtime, roots, &["delete", "--force", id])).map(|_| ())
}

/// Many starts at the same moment: until the last has ended.
fn at_once(bundle: &Path, roots: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let samples = time_in_turns(&names(), rounds, |index, round| {
        let start = Instant::now();
        let children = (0..AT_ONCE)
            .map(|n| {
                with_bundle(
                    RUNTIMES[index],
                    roots,
                    bundle,
                    &["run"],
                    &id(RUNTIMES[index], &format!("many-{round}-{n}")),
                )
                .spawn()
            })
            .collect::<Result<Vec<_>, _>>()?;
        for mut child in children {
            let status = child.wait()?;
            ensure!(status.success(), "one of {AT_ONCE} at once ended with {status}");
        }
        Ok(start.elapsed())
    })?;
    report.row(&format!("run, {AT_ONCE} at once, all of them"), &samples, &targets());
    Ok(())
}

/// Whether the last of many starts takes longer than the first, or leaves anything.
fn one_after_another(bundle: &Path, roots: &Path, many: usize, report: &mut Report) -> Result<()> {
    let ours = RUNTIMES[0];
    let before = traces()?;
    let samples = time_in_turns(&names()[..1], many, |_, round| {
        time(&mut with_bundle(ours, roots, bundle, &["run"], &format!("next-{round}")))
    })?;
    let left: Vec<String> = traces()?.difference(&before).cloned().collect();
    let median = |micros: &[f64]| Sample { name: String::new(), micros: micros.to_vec(), max_rss: 0 }.median();
    let (micros, tenth) = (&samples[0].micros, many.div_ceil(10));
    let value = json!({
        "median of the first tenth, µs": median(&micros[..tenth]).round(),
        "median of the last tenth, µs": median(&micros[micros.len() - tenth..]).round(),
        "left behind": left,
    });
    report.fact(&format!("run, {many} one after another"), value);
    Ok(())
}

/// Mounts and cgroups of containers: what a runtime could leave. Others on this machine have theirs by other names.
fn traces() -> Result<BTreeSet<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: BTreeSet<String> = mounts.lines().map(str::to_owned).collect();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")? {
        for cgroup in std::fs::read_dir(hierarchy?.path())?.flatten() {
            let path = cgroup.path();
            if path.to_string_lossy().contains("/next-") {
                found.insert(path.display().to_string());
            }
        }
    }
    Ok(found)
}

/// `list` with many containers. They have the host's network, which it does not look at.
fn list(bundle: &Path, roots: &Path, many: usize, report: &mut Report) -> Result<()> {
    for n in 0..many {
        for runtime in RUNTIMES {
            time(&mut with_bundle(*runtime, roots, bundle, &["run", "--detach"], &id(*runtime, &format!("list-{n}"))))?;
        }
    }
    let samples = time_in_turns(&names(), 20, |index, _| time(&mut verb(RUNTIMES[index], roots, &["list"])))?;
    report.row(&format!("list, {many} containers"), &samples, &targets());
    for n in 0..many {
        RUNTIMES.iter().try_for_each(|runtime| remove(*runtime, roots, &id(*runtime, &format!("list-{n}"))))?;
    }
    Ok(())
}
