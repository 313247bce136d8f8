//! Running other programs: the command line is part of the error, so that a failure can be repeated by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The workspace's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate lies two folders deep")
}

/// Where Cargo puts what it builds; peers live beside it.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A `cargo` command in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs to the end; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs to the end and returns what it printed, without the last newline.
pub fn output(command: &mut Command) -> Result<String> {
    let out =
        command.stderr(std::process::Stdio::inherit()).output().with_context(|| format!("starting {command:?}"))?;
    ensure!(out.status.success(), "{command:?} ended with {}", out.status);
    Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
}
