//! `cargo xtask guest`: the QEMU guest of integration/guest, with Tare's programs at /share/bin.

use std::process::Command;

use anyhow::Result;
use tare_integration::programs;

use crate::{install, sh};

#[derive(clap::Args)]
pub struct Args {
    /// Options of integration/guest/run, `--`, then the command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    run: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let bin = programs::installed();
    install::run(bin.parent().expect("bin has a parent"))?;
    let mut guest = Command::new(sh::root().join("integration/guest/run"));
    guest.arg("--share").arg(format!("{}=bin", bin.display()));
    if !args.run.iter().any(|word| word == "--") {
        guest.arg("--");
    }
    sh::run(guest.args(&args.run))
}
