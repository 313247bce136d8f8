//! `cargo xtask install --prefix DIR`: the release binaries, where a packager or a test wants them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::sh;

/// Which profile builds which program; see the profiles in the workspace's Cargo.toml.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("small", "tare-runtime", &["tare"]),
    ("small", "tare-shim", &["containerd-shim-tare-v2"]),
    ("release", "tare-manager", &["tared", "tarectl"]),
];

/// Builds a program that is measured but not installed, and returns where it lies.
///
/// # Errors
/// It does not build.
pub fn build(profile: &str, package: &str, program: &str) -> Result<PathBuf> {
    sh::run(&mut sh::cargo(&["build", "--quiet", "--profile", profile, "--package", package]))?;
    Ok(sh::target().join(host()?).join(profile).join(program))
}

pub fn run(prefix: &Path) -> Result<()> {
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    for (profile, package, programs) in PROGRAMS {
        for program in *programs {
            let built = build(profile, package, program)?;
            let placed = bin.join(program);
            let aside = bin.join(format!(".{program}.new"));
            fs::copy(&built, &aside).with_context(|| format!("copying {} to {}", built.display(), aside.display()))?;
            fs::rename(&aside, &placed)?; // never write into a program that may be running
        }
    }
    Ok(())
}

/// The target triple that `.cargo/config.toml` builds for.
fn host() -> Result<String> {
    sh::output(std::process::Command::new("rustc").args(["--print", "host-tuple"]))
}
