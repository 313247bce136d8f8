//! `tare update`: other limits for a running container.
//!
//! Source: runc-update(8).

use std::io::Read as _;

use super::flags::{Flag, Order, Parsed, parse, value};
use super::{Error, Global, only_id};
use crate::cgroup::{Cgroup, Settings};
use crate::error::Doing as _;
use crate::spec::Resources;
use crate::state::{StateDir, Status};

const FLAGS: &[Flag] = &[
    value(&["resources", "r"]),
    value(&["blkio-weight"]),
    value(&["cpu-period"]),
    value(&["cpu-quota"]),
    value(&["cpu-burst"]),
    value(&["cpu-share"]),
    value(&["cpu-idle"]),
    value(&["cpu-rt-period"]),
    value(&["cpu-rt-runtime"]),
    value(&["cpuset-cpus"]),
    value(&["cpuset-mems"]),
    value(&["memory"]),
    value(&["memory-reservation"]),
    value(&["memory-swap"]),
    value(&["pids-limit"]),
    value(&["kernel-memory"]),
    value(&["kernel-memory-tcp"]),
    value(&["l3-cache-schema"]),
    value(&["mem-bw-schema"]),
];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let id = only_id("update", &parsed.words)?;
    let mut resources = resources(global, &parsed)?;
    let entry = StateDir::open(&global.root, &id)?;
    let state = entry.read()?;
    if matches!(state.status(&entry), Status::Stopped | Status::Creating) {
        return Err(Error::Refused("container not running".into()));
    }
    let Some(path) = &state.cgroup else {
        return Err(Error::Refused("cannot update a container without cgroups".into()));
    };
    let cgroup = Cgroup::open(path.clone());
    cgroup.complete(&mut resources);
    let settings = Settings::for_update(path, &resources)?; // refused by field name before anything is changed
    if let Some(unit) = &state.unit {
        unit.set_limits(&resources, path.is_version_1())?;
    }
    cgroup.update(&settings)?;
    Ok(0)
}

fn resources(global: &Global, parsed: &Parsed) -> Result<Resources, Error> {
    if let Some(file) = parsed.value("resources") {
        let mut text = Vec::new();
        if file == "-" {
            std::io::stdin().read_to_end(&mut text).doing(|| "reading resources from standard input".into())?;
        } else {
            text = std::fs::read(file).doing(|| format!("reading resources from {file}"))?;
        }
        let mut resources: Resources =
            serde_json::from_slice(&text).map_err(|error| Error::Usage(format!("reading resources: {error}")))?;
        resources.devices.clear(); // an update never touches devices, as runc has it
        return Ok(resources);
    }
    for unsupported in ["l3-cache-schema", "mem-bw-schema"] {
        if parsed.value(unsupported).is_some() {
            return Err(Error::Usage(format!("--{unsupported}: not supported yet")));
        }
    }
    for ignored in ["kernel-memory", "kernel-memory-tcp"] {
        if parsed.value(ignored).is_some() {
            global.log.warn(&format!("--{ignored} is ignored: kernels have no such limit any more"));
        }
    }
    let mut resources = Resources::default();
    let cpu = resources.cpu.get_or_insert_default();
    cpu.period = number(parsed, "cpu-period")?;
    cpu.quota = number(parsed, "cpu-quota")?;
    cpu.burst = number(parsed, "cpu-burst")?;
    cpu.shares = number(parsed, "cpu-share")?;
    cpu.idle = number(parsed, "cpu-idle")?;
    cpu.realtime_period = number(parsed, "cpu-rt-period")?;
    cpu.realtime_runtime = number(parsed, "cpu-rt-runtime")?;
    cpu.cpus = parsed.value("cpuset-cpus").unwrap_or_default().into();
    cpu.mems = parsed.value("cpuset-mems").unwrap_or_default().into();
    let memory = resources.memory.get_or_insert_default();
    memory.limit = bytes(parsed, "memory")?;
    memory.reservation = bytes(parsed, "memory-reservation")?;
    memory.swap = bytes(parsed, "memory-swap")?;
    resources.pids.get_or_insert_default().limit = number(parsed, "pids-limit")?;
    resources.block_io.get_or_insert_default().weight = number(parsed, "blkio-weight")?;
    Ok(resources)
}

fn number<T: std::str::FromStr>(parsed: &Parsed, name: &str) -> Result<Option<T>, Error> {
    let read = |text: &str| text.parse().map_err(|_| Error::Usage(format!("--{name}: {text:?} is not a number")));
    parsed.value(name).filter(|text| !text.is_empty()).map(read).transpose()
}

/// Bytes, with k, m, g or t for powers of 1024; -1 for no limit.
fn bytes(parsed: &Parsed, name: &str) -> Result<Option<i64>, Error> {
    let read = |text: &str| {
        let lower = text.trim().to_ascii_lowercase();
        let plain = lower.trim_end_matches('b').trim_end_matches('i');
        let (digits, shift) = match plain.char_indices().last() {
            Some((at, 'k')) => (&plain[..at], 10),
            Some((at, 'm')) => (&plain[..at], 20),
            Some((at, 'g')) => (&plain[..at], 30),
            Some((at, 't')) => (&plain[..at], 40),
            _ => (plain, 0),
        };
        let bytes = digits.trim().parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.ok_or_else(|| Error::Usage(format!("--{name}: {text:?} is not a number of bytes")))
    };
    parsed.value(name).filter(|text| !text.is_empty()).map(read).transpose()
}
