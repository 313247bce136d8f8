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
            let status = command.status().with_context(|| format!("starting {command:?}"))?;
            let took = start.elapsed();
            ensure!(status.success(), "{}: {command:?} ended with {status}", contenders[index].name);
            if round >= WARM_UP {
                samples[index].micros.push(took.as_secs_f64() * 1e6);
            }
        }
    }
    for (contender, sample) in contenders.iter().zip(&mut samples) {
        sample.max_rss = peak(&(contender.command)(rounds + WARM_UP))?;
    }
    Ok(samples)
}

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
