//! `cargo xtask install --prefix DIR`: the release binaries with what belongs to them, where a packager or a test wants them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::sh;

/// Which profile builds which program; see the profiles in the workspace's Cargo.toml.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("small", "tare-runtime", &["tare"]),
    ("small", "tare-shim", &["containerd-shim-tare-v2"]),
    ("release", "tare-manager", &["tared", "tarectl"]),
];

/// Where each shell looks for completions, below the prefix.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/tarectl"),
    ("fish", "share/fish/vendor_completions.d/tarectl.fish"),
    ("zsh", "share/zsh/site-functions/_tarectl"),
];

/// # Errors
/// A program does not build, or the prefix cannot be written.
pub fn run(prefix: &Path) -> Result<()> {
    let bin = prefix.join("bin");
    for (profile, package, programs) in PROGRAMS {
        for program in *programs {
            let built = build(profile, package, program)?;
            place(
                &fs::read(&built).with_context(|| format!("reading {}", built.display()))?,
                &bin.join(program),
                0o755,
            )?;
        }
    }
    let tarectl = bin.join("tarectl");
    for (shell, path) in COMPLETIONS {
        let script = sh::output(Command::new(&tarectl).args(["completion", shell]))?;
        place(script.as_bytes(), &prefix.join(path), 0o644)?;
    }
    let man = prefix.join("share/man/man1");
    fs::create_dir_all(&man).with_context(|| format!("making {}", man.display()))?;
    sh::run(Command::new(&tarectl).arg("man").arg(&man))?;
    let unit = fs::read_to_string(sh::root().join("manager/dist/tared.service"))?;
    let prefix_text = std::path::absolute(prefix)?.display().to_string();
    place(unit.replace("@PREFIX@", &prefix_text).as_bytes(), &prefix.join("lib/systemd/system/tared.service"), 0o644)
}

/// Builds a program and returns where it lies.
///
/// # Errors
/// It does not build.
pub fn build(profile: &str, package: &str, program: &str) -> Result<PathBuf> {
    sh::run(&mut sh::cargo(&["build", "--quiet", "--profile", profile, "--package", package]))?;
    Ok(sh::target().join(host()?).join(profile).join(program))
}

/// Puts a file in its place at once: what runs from there is never written into.
fn place(bytes: &[u8], path: &Path, mode: u32) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let aside = path.with_extension("new");
    let write = || {
        fs::write(&aside, bytes)?;
        fs::set_permissions(&aside, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        fs::rename(&aside, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The target triple that `.cargo/config.toml` builds for.
fn host() -> Result<String> {
    sh::output(Command::new("rustc").args(["--print", "host-tuple"]))
}
