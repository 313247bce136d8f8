//! Limits and devices.

use serde_json::{Value, json};

use super::device::Device;
use super::{Asked, device};
use crate::error::Result;

/// What cgroups limit; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes; -1 for no limit.
    pub memory_swap: Option<i64>,
    pub memory_swappiness: Option<u64>,
    pub oom_kill_disable: bool,
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids: Option<i64>,
    pub blkio_weight: Option<u16>,
}

/// `linux.resources` and `linux.devices`.
///
/// # Errors
/// A device of the host cannot be looked at.
pub fn resources(asked: &Asked) -> Result<(Value, Vec<Value>)> {
    let mut devices = asked.devices.clone();
    if asked.privileged {
        devices.extend(device::all_of_the_host()?);
    }
    let rules = if asked.privileged { vec![json!({"allow": true, "access": "rwm"})] } else { rules(asked, &devices) };
    let mut resources = json!({"devices": rules});
    let limits = &asked.limits;
    let mut set = |object: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[object][name] = value;
        }
    };
    set("memory", "limit", limits.memory.map(Value::from));
    set("memory", "reservation", limits.memory_reservation.map(Value::from));
    set("memory", "swap", limits.memory_swap.map(Value::from));
    set("memory", "swappiness", limits.memory_swappiness.map(Value::from));
    set("memory", "disableOOMKiller", limits.oom_kill_disable.then_some(Value::Bool(true)));
    set("cpu", "shares", limits.cpu_shares.map(Value::from));
    set("cpu", "quota", limits.cpu_quota.map(Value::from));
    set("cpu", "period", limits.cpu_period.map(Value::from));
    set("cpu", "cpus", limits.cpuset_cpus.clone().map(Value::from));
    set("cpu", "mems", limits.cpuset_mems.clone().map(Value::from));
    set("pids", "limit", limits.pids.map(Value::from));
    set("blockIO", "weight", limits.blkio_weight.map(Value::from));
    Ok((resources, devices.iter().map(Device::spec).collect()))
}

/// Nothing but what every container has, and what was asked for.
fn rules(asked: &Asked, devices: &[Device]) -> Vec<Value> {
    let every = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    // Making a device node of any kind is as harmless as it is useless, and programs that unpack archives do.
    rules.extend(["c", "b"].map(|kind| json!({"allow": true, "type": kind, "access": "m"})));
    for (major, minor) in every {
        rules.push(json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}));
    }
    rules.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"})); // pseudo-terminals
    rules.extend(devices.iter().map(Device::rule));
    rules.extend(asked.device_rules.iter().cloned());
    rules
}
