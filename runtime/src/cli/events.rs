//! `tare events`: what a container uses, as JSON lines.
//!
//! Source: runc-events(8).

use std::time::Duration;

use serde_json::json;

use super::flags::{Flag, Order, parse, switch, value};
use super::{Error, Global, only_id};
use crate::cgroup::Cgroup;
use crate::state::{StateDir, Status};

const FLAGS: &[Flag] = &[switch(&["stats"]), value(&["interval"])];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let id = only_id("events", &parsed.words)?;
    let entry = StateDir::look(&global.root, &id);
    let state = entry.read()?;
    if state.status(&entry) == Status::Stopped {
        return Err(Error::Refused(format!("container with id {} is not running", id.as_str())));
    }
    let Some(path) = state.cgroup.clone() else {
        return Err(Error::Refused("a container without cgroups has no statistics".into()));
    };
    let cgroup = Cgroup::open(path);
    let print = || -> Result<(), Error> {
        println!("{}", json!({"type": "stats", "id": id, "data": cgroup.stats()?}));
        Ok(())
    };
    if parsed.is_set("stats") {
        print()?;
        return Ok(0);
    }
    let interval = humantime::parse_duration(parsed.value("interval").unwrap_or("5s"))
        .ok()
        .filter(|interval| *interval > Duration::ZERO)
        .ok_or_else(|| Error::Usage("--interval must be a duration above zero, such as 5s".into()))?;
    while cgroup.exists() && state.is_alive() {
        print()?;
        std::thread::sleep(interval);
    }
    Ok(0)
}
