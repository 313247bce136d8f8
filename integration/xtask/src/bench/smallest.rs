//! The smallest memory limit under which each runtime starts a container.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::bundle;
use super::report::Report;
use super::runtimes::{RUNTIMES, Runtime};

const KIB: u64 = 1 << 10;
/// Limits are tried to this.
const STEP: u64 = 64 * KIB;
const LARGEST: u64 = 64 << 20;
/// A limit is enough if it was as often.
const TIMES: usize = 3;

/// Says it for each runtime, with busybox's `true` as the container's program.
///
/// # Errors
/// A container does not even start under the largest limit.
pub fn row(spec: &Value, dir: &Path, roots: &Path, report: &mut Report) -> Result<()> {
    let bundle = bundle::make(&dir.join("limited"), spec)?;
    let mut found = serde_json::Map::new();
    for runtime in RUNTIMES {
        ensure!(
            starts(*runtime, spec, LARGEST, &bundle, roots)?,
            "{} does not start under {LARGEST} bytes",
            runtime.name
        );
        let (mut too_small, mut enough) = (0, LARGEST);
        while enough - too_small > STEP {
            let middle = (too_small + enough) / 2 / STEP * STEP;
            match starts(*runtime, spec, middle, &bundle, roots)? {
                true => enough = middle,
                false => too_small = middle,
            }
        }
        found.insert(runtime.name.to_owned(), json!(enough / KIB));
    }
    report.fact("smallest memory limit that busybox true starts under, KiB", Value::Object(found));
    Ok(())
}

fn starts(runtime: Runtime, spec: &Value, limit: u64, bundle: &Path, roots: &Path) -> Result<bool> {
    let mut limited = spec.clone();
    limited["linux"]["resources"]["memory"] = json!({"limit": limit});
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(&limited)?)?;
    for _ in 0..TIMES {
        let mut run = runtime.command(roots);
        run.args(["run", "--bundle"]).arg(bundle).arg("limited");
        let ended = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if !ended.success() {
            let mut delete = runtime.command(roots); // what a runtime that was killed has left
            delete.args(["delete", "--force", "limited"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            return Ok(false);
        }
    }
    Ok(true)
}
