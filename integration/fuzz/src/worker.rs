//! The process that tries the inputs, one after the other, until its time is over or one of them ends it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::mutate::{Dice, mutate};
use crate::targets::Target;

/// No reader of ours needs more for an input of a few kilobytes.
const MEMORY: u64 = 512 << 20;
/// None should take milliseconds; a machine under load may.
const PATIENCE: Duration = Duration::from_secs(10);

static TRIED: AtomicU64 = AtomicU64::new(0);

/// Tries the corpus, then what comes of it. The input at work is always in the file `current`.
pub fn run(target: &Target, current: &Path, time: Duration, seed: u64) -> Result<()> {
    let corpus = corpus(target.name)?;
    let current = File::options().write(true).open(current).context("opening the file for the input at work")?;
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) }).context("limiting memory")?;
    std::thread::Builder::new().name("watch".into()).spawn(watch).context("starting the watch")?;

    let start = Instant::now();
    for input in &corpus {
        attempt(target, &current, input)?;
    }
    let mut dice = Dice::new(seed);
    while start.elapsed() < time {
        attempt(target, &current, &mutate(&corpus, &mut dice))?;
    }
    let tried = TRIED.load(Ordering::Relaxed);
    println!("{}: {tried} inputs in {} s, nothing found", target.name, start.elapsed().as_secs());
    Ok(())
}

fn attempt(target: &Target, current: &File, input: &[u8]) -> Result<()> {
    current.write_all_at(input, 0).and_then(|()| current.set_len(input.len() as u64)).context("noting the input")?;
    (target.try_input)(input);
    TRIED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Ends the process when an input does not.
fn watch() {
    let mut seen = u64::MAX;
    loop {
        std::thread::sleep(PATIENCE);
        let tried = TRIED.load(Ordering::Relaxed);
        if tried == seen {
            eprintln!("no answer for {} s", PATIENCE.as_secs());
            std::process::abort();
        }
        seen = tried;
    }
}

/// The committed inputs of a target.
pub fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let reading = || format!("reading {}", folder.display());
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).with_context(reading)?.flatten().map(|entry| entry.path()).collect();
    paths.sort(); // the same order everywhere
    ensure!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| std::fs::read(path).with_context(reading)).collect()
}
