//! Where the programs under test lie, and those they are compared with.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The folder with Tare's four programs, built for release.
pub fn installed() -> PathBuf {
    target().join("installed/bin")
}

/// One of Tare's own programs.
///
/// # Errors
/// It was not built: `cargo xtask test` does that.
pub fn tare(program: &str) -> Result<PathBuf> {
    there(installed().join(program))
}

/// A peer's program, unpacked from a Debian package: `tree` is `bookworm` or `newer`.
///
/// # Errors
/// It was not unpacked: `cargo xtask peers` does that.
pub fn peer(tree: &str, program: &str) -> Result<PathBuf> {
    let tree = target().join("peers").join(tree);
    let dirs = ["usr/bin", "usr/sbin", "bin", "sbin", "usr/lib/cni", "usr/libexec/docker/cli-plugins"];
    let found = dirs.iter().map(|dir| tree.join(dir).join(program)).find(|path| path.exists());
    there(found.unwrap_or_else(|| tree.join("usr/bin").join(program)))
}

/// The folder with what Debian's Go packages are made from, `.proto` files among it.
///
/// # Errors
/// They were not unpacked: `cargo xtask peers` does that.
pub fn go_sources() -> Result<PathBuf> {
    there(target().join("peers/sources/usr/share/gocode/src"))
}

fn there(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: `cargo xtask test` puts it there", path.display());
    Ok(path)
}
