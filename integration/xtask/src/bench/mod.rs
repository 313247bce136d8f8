//! `cargo xtask bench`: Tare beside its peers, in one run, as ratios.
//!
//! Contenders take turns round by round, so that whatever else the machine does meets all of them alike. What they do
//! is compared before it is timed. A benchmark is not a test: it fails only where a contender fails.

mod bundle;
mod calls;
mod containers;
mod cri;
mod filters;
mod manager;
mod memory;
mod pull;
mod report;
mod rounds;
mod runtimes;
mod shim;
mod smallest;
mod verbs;
mod view;

use std::time::Duration;

use anyhow::Result;
use tare_integration::programs;

use crate::{install, peers};
use report::Report;

#[derive(clap::Args)]
pub struct Args {
    /// What to measure; everything but a soak if not given
    #[arg(value_enum)]
    what: Vec<What>,
    /// Rounds of each row
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// How long a soak takes
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Milliseconds between two starts: idle gaps show waits that tight loops hide
    #[arg(long, value_delimiter = ',', default_values_t = [5, 60])]
    gaps: Vec<u64>,
    /// Measure what is installed already, without building it anew
    #[arg(long)]
    as_installed: bool,
    /// Used by the benchmark itself: run the rows of one cgroup view, in a mount namespace of their own
    #[arg(long, hide = true)]
    view: Option<view::View>,
    /// Used by the benchmark itself: run the rows of CRI in this process
    #[arg(long, hide = true)]
    cri: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// `tare run` of busybox true beside crun, runc and a program that does nothing but the system calls
    Run,
    /// The runtime's other commands beside crun's and runc's, with one container and with a thousand
    Verbs,
    /// Profiles: compiled, loaded, and what each system call costs under them, beside libseccomp's
    Filters,
    /// `ctr run --rm` through containerd, with containerd's shim and with ours
    Ctr,
    /// Resident memory of a shim
    Memory,
    /// Shims alone: start, exec, output, and memory of pods of one to fifty and of a hundred shims
    Shim,
    /// Containers and execs without end in one shim, which must not grow
    Soak,
    /// The kubelet's calls, with one pod and with a hundred, tared beside containerd's CRI
    Cri,
    /// Pull and unpack from a registry on loopback, tared beside containerd
    Pull,
    /// tared's calls, starts and memory on small and large stores, beside containerd
    Manager,
}

pub fn run(args: &Args) -> Result<()> {
    match args.view {
        Some(view) if args.what.contains(&What::Verbs) => return verbs::rows(view, args.rounds),
        Some(view) if args.what.contains(&What::Filters) => return filters::rows(view, args.rounds),
        Some(view) => return runtimes::rows(view, args.rounds, &args.gaps),
        None => {}
    }
    if args.cri {
        return cri::rows(args.rounds);
    }
    if !args.as_installed {
        build()?;
    }
    peers::unpack()?;
    let wanted = |what| args.what.is_empty() || args.what.contains(&what);
    let mut report = Report::begin()?;
    if wanted(What::Run) {
        runtimes::in_each_view(args.rounds, &args.gaps, &mut report)?;
    }
    if wanted(What::Verbs) {
        verbs::in_one_view(args.rounds, &mut report)?;
    }
    if wanted(What::Filters) {
        filters::in_release(args.rounds, &mut report)?;
    }
    if wanted(What::Ctr) {
        containers::rows(args.rounds.min(30), &mut report)?;
    }
    if wanted(What::Memory) {
        memory::rows(&mut report)?;
    }
    if wanted(What::Shim) {
        shim::rows(args.rounds.min(50), &mut report)?;
    }
    if args.what.contains(&What::Soak) {
        shim::soak(Duration::from_secs(args.seconds), &mut report)?;
    }
    if wanted(What::Cri) {
        cri::in_release(args.rounds.min(30), &mut report)?;
    }
    if wanted(What::Pull) {
        pull::rows(&mut report)?;
    }
    if wanted(What::Manager) {
        manager::rows(&mut report)?;
    }
    report.keep()
}

fn build() -> Result<()> {
    install::run(programs::installed().parent().expect("bin has a parent"))?;
    for program in ["floor", "peak"] {
        let built = install::build("small", "tare-floor", program)?;
        std::fs::copy(built, programs::installed().join(program))?; // beside the others, where the rows look for it
    }
    Ok(())
}
