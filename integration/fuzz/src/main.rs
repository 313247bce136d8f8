//! Throws inputs that nobody meant at what reads outside text: `fuzz config --seconds 30`.
//!
//! Inputs are mutations of a committed corpus (`corpus/TARGET/`), byte by byte or, where they are JSON, node by node. They
//! follow from the seed alone, so a run can be repeated. Stable Rust has no coverage to steer by: the corpus is what
//! steers, and what was found once stays in it as a case, tried first in each run.
//!
//! The inputs run in a second process. A panic, an abort, a use of memory without bound or an input that takes more than
//! ten seconds ends that process, and the first one keeps the input in `target/fuzz/`.

mod mutate;
mod targets;
mod worker;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use targets::{TARGETS, Target};

const USAGE: &str = "usage: fuzz TARGET|all [--seconds N] [--seed N]\n       fuzz TARGET FILE\n       fuzz list";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Says whether nothing was found.
fn run(words: Vec<String>) -> Result<bool> {
    let mut words = words.into_iter();
    let name = words.next().context(USAGE)?;
    if name == "list" {
        for target in TARGETS {
            println!("{:16} {}", target.name, target.about);
        }
        return Ok(true);
    }
    let (mut time, mut seed, mut file, mut inside) = (Duration::from_secs(10), 1, None, None);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).context(USAGE);
        match word.as_str() {
            "--seconds" => time = Duration::from_secs(number()?),
            "--seed" => seed = number()?,
            "--worker" => inside = words.next().map(PathBuf::from),
            _ if file.is_none() => file = Some(PathBuf::from(word)),
            _ => bail!(USAGE),
        }
    }
    let chosen: Vec<&Target> = TARGETS.iter().filter(|target| name == "all" || target.name == name).collect();
    match (chosen.as_slice(), file, inside) {
        ([], ..) => bail!("no target {name}: see fuzz list"),
        ([target], Some(file), None) => {
            (target.try_input)(&std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
            println!("{name}: nothing found");
            Ok(true)
        }
        ([target], None, Some(current)) => worker::run(target, &current, time, seed).map(|()| true),
        (targets, None, None) => {
            let mut clean = true;
            for target in targets {
                clean &= supervise(target, time, seed)?;
            }
            Ok(clean)
        }
        _ => bail!(USAGE),
    }
}

/// Runs a worker, and keeps the input that ended it.
fn supervise(target: &Target, time: Duration, seed: u64) -> Result<bool> {
    let current = tempfile::NamedTempFile::new().context("making a file for the input at work")?;
    let mut worker = Command::new(std::env::current_exe()?);
    worker
        .arg0(format!("fuzz {}", target.name))
        .args([target.name, "--seconds", &time.as_secs().to_string(), "--seed", &seed.to_string(), "--worker"])
        .arg(current.path())
        .stdin(Stdio::null());
    let status = worker.status().context("starting the worker")?;
    if status.success() {
        return Ok(true);
    }
    let input = std::fs::read(current.path())?;
    let found = keep(target, &input)?;
    eprintln!("{}: {status} on an input of {} bytes, kept as {}", target.name, input.len(), found.display());
    eprintln!("again: fuzz {} {}", target.name, found.display());
    Ok(false)
}

fn keep(target: &Target, input: &[u8]) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz").join(target.name);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // FNV-1a: a name that is the same for the same input.
    let hash = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let path = folder.join(format!("{hash:016x}"));
    std::fs::write(&path, input).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
