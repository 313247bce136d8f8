//! `tare ps`: the processes of a container, as the host numbers them.
//!
//! Source: runc-ps(8).

use std::process::Command;

use super::flags::{Flag, Order, parse, value};
use super::{Error, Global};
use crate::cgroup::Cgroup;
use crate::error::Doing as _;
use crate::state::{Id, StateDir};

const FLAGS: &[Flag] = &[value(&["format", "f"])];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::First)?;
    let Some((id, args)) = parsed.words.split_first() else {
        return Err(Error::Usage("\"ps\" requires a container's id".into()));
    };
    // runc's callers put the format behind the id too.
    let (format, args) = match args {
        [flag, format, rest @ ..] if matches!(flag.as_str(), "--format" | "-f" | "-format") => {
            (Some(format.as_str()), rest)
        }
        args => (parsed.value("format"), args),
    };
    let entry = StateDir::look(&global.root, &Id::new(id)?);
    let state = entry.read()?;
    let pids = match state.cgroup.clone() {
        Some(path) => Cgroup::open(path).pids()?,
        None => state.is_alive().then_some(state.pid).into_iter().collect(),
    };
    match format.unwrap_or("table") {
        "json" => println!("{}", serde_json::to_string(&pids).expect("numbers")),
        "table" => print_table(&pids, args)?,
        _ => return Err(Error::Usage("invalid format option".into())),
    }
    Ok(0)
}

/// What the host's ps says, with only the header and the container's lines.
fn print_table(pids: &[i32], args: &[String]) -> Result<(), Error> {
    let default = ["-ef".to_owned()];
    let args = if args.is_empty() { &default[..] } else { args };
    let out = Command::new("ps").args(args).output().doing(|| "running ps".into())?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(Error::Refused(format!("ps {}: {}", args.join(" "), said.trim())));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|title| title == "PID") else {
        return Err(Error::Refused(format!("ps {}: its output has no column PID", args.join(" "))));
    };
    println!("{header}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(())
}
