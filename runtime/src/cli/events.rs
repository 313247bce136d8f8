//! `tare events`: what a container uses, as JSON lines.
//!
//! Source: runc-events(8).

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::flags::{Flag, Order, parse, switch, value};
use super::{Error, Global, only_id};
use crate::cgroup::oom::Watch;
use crate::cgroup::{Cgroup, Stats};
use crate::error::Doing as _;
use crate::state::{Id, State, StateDir, Status};

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
    if parsed.is_set("stats") {
        print_stats(&id, &cgroup)?;
        return Ok(0);
    }
    let interval = humantime::parse_duration(parsed.value("interval").unwrap_or("5s"))
        .ok()
        .filter(|interval| *interval > Duration::ZERO)
        .ok_or_else(|| Error::Usage("--interval: duration interval must be greater than 0, such as 5s".into()))?;
    watch(&state, &cgroup, interval)
}

/// Prints statistics each `interval`, and every time the kernel killed for want of memory, until the container ends.
fn watch(state: &State, cgroup: &Cgroup, interval: Duration) -> Result<i32, Error> {
    let mut memory = Watch::open(cgroup.path())?;
    let Some(init) = state.pidfd() else { return Ok(0) };
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut waits = vec![PollFd::new(&init, PollFlags::IN)];
        waits.extend(memory.as_ref().map(|memory| PollFd::new(memory, PollFlags::IN)));
        poll(&mut waits, Some(&left)).doing(|| "waiting for events".into())?;
        let ended = !waits[0].revents().is_empty();
        if let Some(memory) = &mut memory {
            // Asked at the end too: the container may have died of it.
            for _ in 0..memory.killed()? {
                print(&Event { kind: "oom", id: &state.id, data: None })?;
            }
        }
        if ended {
            return Ok(0);
        }
        if Instant::now() >= next {
            print_stats(&state.id, cgroup)?;
            next += interval;
        }
    }
}

fn print_stats(id: &Id, cgroup: &Cgroup) -> Result<(), Error> {
    print(&Event { kind: "stats", id, data: Some(cgroup.stats()?) })
}

/// One line. The order of its fields is what some readers of runc's lines match.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

fn print(event: &Event<'_>) -> Result<(), Error> {
    let line = serde_json::to_string(event).map_err(|error| Error::Usage(format!("writing an event: {error}")))?;
    println!("{line}");
    Ok(())
}
