//! The default profile: how long it takes to compile and to load, and what a system call costs under it; beside the program
//! that libseccomp makes of it for crun and runc, taken from a container of theirs.

#![allow(unsafe_code)] // ptrace(2), prctl(2) and bare system calls

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tare_runtime::seccomp::{self, Instruction, Program};

use super::bundle;
use super::report::Report;
use super::rounds::time;
use super::runtimes::{RUNTIMES, Runtime};
use super::view::View;
use crate::install;

/// Runs the rows in a build of this program that is optimised, as the compiler in `tare` is.
///
/// # Errors
/// It does not build, or a row failed.
pub fn in_release(rounds: usize, report: &mut Report) -> Result<()> {
    let optimised = install::build("release", "xtask", "xtask")?;
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "--"]).arg(optimised);
    report.follow(inside.args(["bench", "filters", "--view", View::V1.name(), "--rounds", &rounds.to_string()]))
}

/// The rows, handed on.
///
/// # Errors
/// A container did not start, or its filter cannot be read.
pub fn rows(view: View, rounds: usize) -> Result<()> {
    let mut spec = bundle::default_spec()?; // before the view changes: containerd wants to see all cgroups
    view.enter()?;
    let mut report = Report::handed_on();
    let dir = tempfile::tempdir()?;
    spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let bundle = bundle::make(&dir.path().join("bundle"), &spec)?;

    let text = serde_json::to_vec(&spec["linux"]["seccomp"])?;
    let compile = || -> Result<Program> { Ok(seccomp::compile(&serde_json::from_slice(&text)?)?) };
    let program = compile()?;
    let compiled = median((0..rounds).map(|_| micros(compile)).collect::<Result<_>>()?);
    report.fact("default profile, read and compiled by tare, µs", json!(compiled));

    let mut programs = vec![("no filter", None), ("tare", Some(program))];
    for runtime in &RUNTIMES[1..] {
        let instructions = loaded_by(*runtime, &bundle, dir.path())?;
        programs.push((runtime.name, Some(Program { instructions, flags: 0, listener: None })));
    }
    for (name, program) in programs {
        report.fact(&format!("default profile, {name}"), under(program, rounds)?);
    }
    Ok(())
}

fn micros<T>(work: impl Fn() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    (numbers[numbers.len() / 2] * 10.0).round() / 10.0
}

/// Loads a program on a thread of its own, again and again, and makes calls under it.
fn under(program: Option<Program>, rounds: usize) -> Result<Value> {
    let (mut loads, mut plain, mut tested) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.min(30) {
        let measured = std::thread::scope(|scope| scope.spawn(|| once(program.as_ref())).join());
        let (load, a, b) = measured.ok().context("the thread under the filter has ended")??;
        loads.push(load);
        plain.push(a);
        tested.push(b);
    }
    let least = |numbers: &[f64]| numbers.iter().copied().fold(f64::INFINITY, f64::min).round();
    Ok(json!({
        "instructions": program.map_or(0, |program| program.instructions.len()),
        "load, µs": median(loads),
        "a call that is always allowed, ns": least(&plain),
        "a call whose argument is tested, ns": least(&tested),
    }))
}

/// How long loading takes, and the two kinds of call.
fn once(program: Option<&Program>) -> Result<(f64, f64, f64)> {
    // SAFETY: it takes numbers, and counts for this thread alone.
    ensure!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0, "setting no_new_privs failed");
    let load = micros(|| Ok(program.map(seccomp::load).transpose()?))?;
    let each = |number: libc::c_long, argument: libc::c_ulong| {
        const CALLS: u32 = 20_000;
        let start = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: getppid takes nothing; personality takes a number, and this one asks without a change.
            unsafe { libc::syscall(number, argument) };
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    Ok((load, each(libc::SYS_getppid, 0), each(libc::SYS_personality, 0xffff_ffff)))
}

/// The filter of a container that `runtime` has started.
fn loaded_by(runtime: Runtime, bundle: &Path, dir: &Path) -> Result<Vec<Instruction>> {
    let (file, roots) = (dir.join("pid"), dir.join("roots"));
    std::fs::create_dir_all(&roots)?;
    let mut run = runtime.command(&roots);
    run.args(["run", "--detach", "--pid-file"]).arg(&file).arg("--bundle").arg(bundle).arg("filtered");
    time(run.stdout(Stdio::null()))?;
    let pid = std::fs::read_to_string(&file)?.trim().parse()?;
    let filter = filter_of(pid);
    time(runtime.command(&roots).args(["delete", "--force", "filtered"]))?;
    filter
}

/// A process's filter, read by its tracer. Source: ptrace(2), `PTRACE_SECCOMP_GET_FILTER`, Linux 4.4.
fn filter_of(pid: libc::pid_t) -> Result<Vec<Instruction>> {
    let ask = |request: libc::c_uint, data: *mut libc::c_void| {
        // SAFETY: of the four requests below one writes to `data`: the filter, for which it has room, or nothing if it is null.
        let answer = unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), data) };
        ensure!(answer >= 0, "ptrace request {request:#x}: {}", std::io::Error::last_os_error());
        Ok(answer as usize)
    };
    let none = std::ptr::null_mut();
    ask(libc::PTRACE_SEIZE, none)?;
    ask(libc::PTRACE_INTERRUPT, none)?;
    // SAFETY: it stops, as it was asked to; no status is wanted.
    ensure!(unsafe { libc::waitpid(pid, none.cast(), libc::__WALL) } == pid, "waiting for process {pid} failed");
    let length = ask(PTRACE_SECCOMP_GET_FILTER, none)?;
    let mut filter = vec![Instruction { code: 0, jt: 0, jf: 0, k: 0 }; length];
    ask(PTRACE_SECCOMP_GET_FILTER, filter.as_mut_ptr().cast())?;
    ask(libc::PTRACE_DETACH, none)?;
    Ok(filter)
}

const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
