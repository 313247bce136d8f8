//! Timing commands in turns.

use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// One of the programs that take turns: a name and the command that is timed.
pub struct Contender<'a> {
    pub name: &'a str,
    /// Makes the command of round `n`.
    pub command: Box<dyn Fn(usize) -> Command + 'a>,
}

/// What one contender needed, over all rounds. Times in microseconds, memory in KiB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub name: String,
    pub micros: Vec<f64>,
    pub max_rss: u64,
}

impl Sample {
    /// The time below which the share `q` of the rounds lies.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * q).round() as usize]
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Runs every contender once a round, in an order that moves by one each round, with an idle `gap` before each start.
/// Three rounds more, before the others, warm the caches and are not counted.
///
/// # Errors
/// A command did not succeed.
pub fn take_turns(contenders: &[Contender<'_>], rounds: usize, gap: Duration) -> Result<Vec<Sample>> {
    const WARM_UP: usize = 3;
    let mut samples: Vec<Sample> = contenders
        .iter()
        .map(|contender| Sample { name: contender.name.to_owned(), micros: Vec::new(), max_rss: 0 })
        .collect();
    for round in 0..rounds + WARM_UP {
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            let mut command = (contenders[index].command)(round);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            std::thread::sleep(gap);
            let start = Instant::now();
            let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
            let (status, max_rss) = wait(child)?;
            let took = start.elapsed();
            ensure!(status.success(), "{}: {command:?} ended with {status}", contenders[index].name);
            if round >= WARM_UP {
                samples[index].micros.push(took.as_secs_f64() * 1e6);
                samples[index].max_rss = samples[index].max_rss.max(max_rss);
            }
        }
    }
    Ok(samples)
}

/// Waits for `child`; returns its status and the largest resident memory, in KiB, of it and what it waited for.
#[allow(unsafe_code)]
fn wait(child: Child) -> Result<(ExitStatus, u64)> {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are to locals that live through the call; the pid is that of a child not yet waited for.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, usage.as_mut_ptr()) };
    ensure!(waited == child.id().cast_signed(), "waiting for {}: {}", child.id(), std::io::Error::last_os_error());
    // SAFETY: zeroed is a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    Ok((ExitStatus::from_raw(status), usage.ru_maxrss.cast_unsigned()))
}
