//! `cargo xtask test`: all tests, unit to end to end.

use std::process::Command;

use anyhow::Result;

use crate::{install, kubelet, peers, sh};

#[derive(clap::Args)]
pub struct Args {
    /// Passed on to nextest: a filter, --no-capture, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    nextest: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    peers::unpack()?;
    kubelet::build()?;
    install::run(&sh::target().join("installed"))?;
    let nextest = Command::new("cargo").args(["nextest", "--version"]).output().is_ok_and(|out| out.status.success());
    let mut command = if nextest {
        sh::cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        sh::cargo(&["test", "--workspace", "--no-fail-fast", "--"])
    };
    sh::run(command.args(&args.nextest))
}
