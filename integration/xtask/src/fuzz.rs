//! `cargo xtask fuzz`: throws inputs that nobody meant at what reads outside text; see integration/fuzz.

use anyhow::Result;

use crate::sh;

#[derive(clap::Args)]
pub struct Args {
    /// One target instead of all of them
    target: Option<String>,
    /// How long each target is tried
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where the random numbers begin: the same seed makes the same inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let target = args.target.as_deref().unwrap_or("all");
    let (seconds, seed) = (args.seconds.to_string(), args.seed.to_string());
    let fuzz = ["run", "--quiet", "--release", "-p", "tare-fuzz", "--bin", "fuzz", "--"];
    sh::run(sh::cargo(&fuzz).args([target, "--seconds", &seconds, "--seed", &seed]))
}
