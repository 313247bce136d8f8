//! What is printed while it is measured, and kept as JSON when all is done.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rounds::Sample;
use crate::sh;

pub struct Report {
    rows: Vec<Value>,
    /// Whether rows are another process's to print and keep.
    handed_on: bool,
}

/// What a process that measures hands to the one that started it, a line each.
#[derive(Serialize, Deserialize)]
enum Line {
    Row { title: String, samples: Vec<Sample>, targets: Vec<Target> },
    Fact { title: String, value: Value },
}

impl Report {
    /// Starts a report with a line on the machine, in general terms.
    ///
    /// # Errors
    /// The machine's own description cannot be read.
    pub fn begin() -> Result<Report> {
        println!("{}\n", machine()?);
        Ok(Report { rows: Vec::new(), handed_on: false })
    }

    /// A report whose rows go to whoever started this process: [`Report::follow`].
    pub fn handed_on() -> Report {
        Report { rows: Vec::new(), handed_on: true }
    }

    /// Runs a process that measures, and takes over its rows.
    ///
    /// # Errors
    /// It did not succeed, or printed something else.
    pub fn follow(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
        for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
            match serde_json::from_str(&line?)? {
                Line::Row { title, samples, targets } => self.row(&title, &samples, &targets),
                Line::Fact { title, value } => self.fact(&title, value),
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(())
    }

    /// Prints and keeps a row: each sample with its ratio to the first one, which is ours, and whether ours meets `targets`.
    pub fn row(&mut self, title: &str, samples: &[Sample], targets: &[Target]) {
        if self.handed_on {
            let (title, samples, targets) = (title.to_owned(), samples.to_vec(), targets.to_vec());
            return println!("{}", json!(Line::Row { title, samples, targets }));
        }
        println!("{}", table(title, samples, targets));
        self.rows.push(json!({"row": title, "samples": samples, "targets": targets}));
    }

    /// Prints and keeps a line that is not a timing.
    pub fn fact(&mut self, title: &str, value: Value) {
        if self.handed_on {
            return println!("{}", json!(Line::Fact { title: title.to_owned(), value }));
        }
        println!("{title}: {value}");
        self.rows.push(json!({"row": title, "value": value}));
    }

    /// Writes all rows with their raw numbers to `target/bench/<commit>.json`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<()> {
        let commit = sh::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(sh::root()))?;
        let place = sh::target().join("bench").join(format!("{commit}.json"));
        fs::create_dir_all(place.parent().expect("bench/ was just joined"))?;
        fs::write(
            &place,
            serde_json::to_vec_pretty(&json!({"machine": machine()?, "commit": commit, "rows": self.rows}))?,
        )?;
        println!("\nraw numbers: {}", place.display());
        Ok(())
    }
}

/// A median that ours is measured against: at most `ratio` times that of `peer`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    peer: String,
    ratio: f64,
}

impl Target {
    pub fn at_most(ratio: f64, peer: &str) -> Target {
        Target { peer: peer.to_owned(), ratio }
    }

    /// A sentence on how far `ours` is from the target.
    fn verdict(&self, ours: f64, samples: &[Sample]) -> String {
        let Some(peer) = samples.iter().find(|sample| sample.name == self.peer) else {
            return format!("  target {:.2}× {}: VOID, it was not measured\n", self.ratio, self.peer);
        };
        let reached = ours / peer.median();
        let verdict = match reached / self.ratio {
            share if share <= 1.0 => "met".to_owned(),
            share => format!("missed by {:.0} %", (share - 1.0) * 100.0),
        };
        format!("  {reached:.3}× {}, target {:.2}×: {verdict}\n", self.peer, self.ratio)
    }
}

/// A row as text: medians with the tenth and ninetieth percentile, how many times the first one's time, and the targets.
fn table(title: &str, samples: &[Sample], targets: &[Target]) -> String {
    let first = samples.first().map_or(1.0, Sample::median);
    let mut text = format!("{title}\n");
    for sample in samples {
        let memory = match sample.max_rss {
            0 => String::new(), // it was not measured
            kib => format!("  {:>7.1} MB", kib as f64 / 1024.0),
        };
        text += &format!(
            "  {:<24} {:>9.2} ms  [{:>8.2} – {:>8.2}]  {:>6.2}×{memory}\n",
            sample.name,
            sample.median() / 1e3,
            sample.quantile(0.1) / 1e3,
            sample.quantile(0.9) / 1e3,
            sample.median() / first,
        );
    }
    text + &targets.iter().map(|target| target.verdict(first, samples)).collect::<String>()
}

/// Processor, count, kernel: enough to read the numbers, nothing that names the machine.
fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel: String = kernel.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let count = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(format!(
        "{count} processors ({}), {} GiB, Linux {kernel}",
        model.trim_start_matches([' ', '\t', ':']).trim(),
        kib / (1 << 20)
    ))
}
