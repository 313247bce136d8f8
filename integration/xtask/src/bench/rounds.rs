//! Timing commands in turns.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tare_integration::programs;

use crate::sh;

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
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    let mut samples = time_in_turns(&names, rounds, |index, round| {
        let mut command = (contenders[index].command)(round);
        std::thread::sleep(gap);
        time(&mut command)
    })?;
    for (contender, sample) in contenders.iter().zip(&mut samples) {
        sample.max_rss = peak(&(contender.command)(rounds + WARM_UP))?;
    }
    Ok(samples)
}

/// Runs a command without input and output; how long it took.
///
/// # Errors
/// It did not succeed.
pub fn time(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    let took = start.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

/// As [`take_turns`], of what is more than a command: `once` is given a contender's index and a round's, and says itself
/// how long that took.
///
/// # Errors
/// Those of `once`.
pub fn time_in_turns(
    names: &[&str],
    rounds: usize,
    mut once: impl FnMut(usize, usize) -> Result<Duration>,
) -> Result<Vec<Sample>> {
    let sample = |name: &&str| Sample { name: (*name).to_owned(), micros: Vec::new(), max_rss: 0 };
    let mut samples: Vec<Sample> = names.iter().map(sample).collect();
    for round in 0..rounds + WARM_UP {
        for turn in 0..names.len() {
            let index = (turn + round) % names.len();
            let took = once(index, round).with_context(|| names[index].to_owned())?;
            if round >= WARM_UP {
                samples[index].micros.push(took.as_secs_f64() * 1e6);
            }
        }
    }
    Ok(samples)
}

const WARM_UP: usize = 3;

/// The largest resident memory of `command` and what it waited for, in KiB. Measured apart from time, by a starter of a
/// few pages: a process inherits the peak of the one that started it.
fn peak(command: &Command) -> Result<u64> {
    let mut starter = Command::new(programs::installed().join("peak"));
    starter.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => starter.env(name, value),
            None => starter.env_remove(name),
        };
    }
    let said = sh::output(&mut starter)?;
    said.lines().last().unwrap_or_default().parse().with_context(|| format!("a number at the end of {said:?}"))
}
