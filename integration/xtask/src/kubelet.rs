//! The client of `integration/kubelet`, built with Debian's Go and Kubernetes' packages beside the peers.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{peers, sh};

/// Builds it if it was made from another source, or never.
pub fn build() -> Result<()> {
    let source = sh::root().join("integration/kubelet/main.go");
    let place = std::path::absolute(sh::target().join("peers/kubelet"))?;
    let program = place.join("usr/bin/kubelet");
    let text = fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
    let recipe = place.join(".recipe"); // as the peers have one; it is the source here
    if fs::read_to_string(&recipe).is_ok_and(|made| made == text) {
        return Ok(());
    }
    eprintln!("peers: building the kubelet's client into {}, which takes minutes once", place.display());
    peers::with_go(|tree| {
        let go = fs::canonicalize(tree.join("usr/bin/go")).context("looking for Debian's Go")?;
        let root = go.ancestors().nth(2).context("go lies in GOROOT/bin")?;
        let cache = place.join("cache");
        sh::run(
            Command::new(&go)
                .args(["build", "-o"])
                .args([&program, &source])
                .env("GOROOT", root)
                .env("GOPATH", fs::canonicalize(tree.join("usr/share/gocode"))?)
                .env("GOCACHE", &cache)
                .envs([("GO111MODULE", "off"), ("GOTOOLCHAIN", "local"), ("CGO_ENABLED", "0"), ("GOFLAGS", "")]),
        )?;
        fs::remove_dir_all(&cache).context("removing what the compiler kept")
    })?;
    fs::write(&recipe, text).with_context(|| format!("writing {}", recipe.display()))
}
