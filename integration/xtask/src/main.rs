//! `cargo xtask …`: the project's front door. Each command is a short list of steps in a file of its own.

mod bench;
mod demo;
mod fuzz;
mod guest;
mod install;
mod kubelet;
mod peers;
mod sh;
mod test;

use std::path::PathBuf;

use clap::Parser;

/// Build, try, test and measure Tare.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// From an image to a container and back to nothing, with everything private
    Demo,
    /// Run every test, from unit to end to end
    Test(test::Args),
    /// Measure Tare beside its peers
    Bench(bench::Args),
    /// Build release binaries and put them below PREFIX/bin
    Install {
        /// The folder that gets bin/, share/man/, …
        #[arg(long)]
        prefix: PathBuf,
    },
    /// Download the programs that tests compare with into target/peers, changing nothing else on this machine
    Peers,
    /// Try mutated inputs on all that reads outside text
    Fuzz(fuzz::Args),
    /// Boot the QEMU guest (cgroup v2, systemd) and run one command in it: `cargo xtask guest -- true`
    Guest(guest::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Demo => demo::run(),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Install { prefix } => install::run(&prefix),
        Task::Peers => peers::unpack().and_then(|()| kubelet::build()),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Guest(args) => guest::run(&args),
    }
}
