//! `linux.resources` in the files of version 2. Fields that the specification took from version 1 are translated; those
//! without a counterpart are refused.
//!
//! Source: kernel cgroup-v2.rst; the translations are those of runc and crun, so that a container weighs the same.

use crate::cgroup::Error;
use crate::cgroup::settings::{Settings, bytes, check_weight, refused};
use crate::spec::{BlockIo, Cpu, Memory, Resources};

/// Adds what `resources` asks for.
pub fn limits(resources: &Resources, settings: &mut Settings) -> Result<(), Error> {
    if let Some(memory) = &resources.memory {
        limit_memory(memory, settings)?;
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(cpu, settings)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        // A limit of 0 would not even let the first process in: it becomes 1, as in runc.
        let value = if limit < 0 { "max".into() } else { limit.max(1).to_string() };
        settings.set("pids", "pids.max", value, "pids.limit");
    }
    if let Some(block_io) = &resources.block_io {
        limit_block_io(block_io, settings)?;
    }
    settings.set_huge_pages(resources, "max")?;
    if let Some(network) = &resources.network {
        for (field, given) in [
            ("network.classID", network.class_id.is_some_and(|class| class != 0)),
            ("network.priorities", !network.priorities.is_empty()),
        ] {
            if given {
                return Err(refused(field, "needs cgroup version 1, and this host has version 2"));
            }
        }
    }
    for (device, limit) in &resources.rdma {
        for (name, value) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(value) = value {
                settings.set("rdma", "rdma.max", format!("{device} {name}={value}"), format!("rdma.{device}"));
            }
        }
    }
    for (key, value) in &resources.unified {
        unified(key, value, settings)?;
    }
    Ok(())
}

fn limit_memory(memory: &Memory, settings: &mut Settings) -> Result<(), Error> {
    if memory.swappiness.is_some() {
        return Err(refused("memory.swappiness", "needs cgroup version 1, and this host has version 2"));
    }
    if memory.disable_oom_killer == Some(true) {
        return Err(refused("memory.disableOOMKiller", "needs cgroup version 1, and this host has version 2"));
    }
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(reservation) = given(memory.reservation) {
        settings.set("memory", "memory.low", bytes(reservation, "max"), "memory.reservation");
    }
    if let Some(swap) = unified_memory_swap(memory)? {
        settings.set("memory", "memory.swap.max", swap, "memory.swap");
    }
    if let Some(limit) = given(memory.limit) {
        settings.set("memory", "memory.max", bytes(limit, "max"), "memory.limit");
    }
    Ok(())
}

/// The specification's swap is memory and swap together, the file's is swap alone.
pub fn unified_memory_swap(memory: &Memory) -> Result<Option<String>, Error> {
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    match (given(memory.limit), given(memory.swap)) {
        (Some(-1), None) | (_, Some(-1)) => Ok(Some("max".into())),
        (_, None) => Ok(None),
        (Some(limit), Some(swap)) if limit > 0 => Ok(Some((swap - limit).to_string())),
        (_, Some(_)) => Err(refused("memory.swap", "needs memory.limit, which it includes")),
    }
}

fn limit_cpu(cpu: &Cpu, settings: &mut Settings) -> Result<(), Error> {
    for (field, given) in [
        ("cpu.realtimeRuntime", cpu.realtime_runtime.is_some_and(|runtime| runtime != 0)),
        ("cpu.realtimePeriod", cpu.realtime_period.is_some_and(|period| period != 0)),
    ] {
        if given {
            return Err(refused(field, "needs cgroup version 1, and this host has version 2"));
        }
    }
    if let Some(idle) = cpu.idle {
        settings.set("cpu", "cpu.idle", idle, "cpu.idle");
    }
    // An idle cgroup has no weight: the kernel refuses one.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        settings.set("cpu", "cpu.weight", weight_from_shares(shares), "cpu.shares");
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|quota| *quota > 0).map_or("max".into(), |quota| quota.to_string());
        settings.set("cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)), "cpu.quota");
    }
    if let Some(burst) = cpu.burst {
        settings.set("cpu", "cpu.max.burst", burst, "cpu.burst");
    }
    if !cpu.cpus.is_empty() {
        settings.set("cpuset", "cpuset.cpus", &cpu.cpus, "cpu.cpus");
    }
    if !cpu.mems.is_empty() {
        settings.set("cpuset", "cpuset.mems", &cpu.mems, "cpu.mems");
    }
    Ok(())
}

/// Shares go from 2 to 262144 with 1024 in the middle of things, weights from 1 to 10000 with 100: a curve through all
/// three, as runc and crun have it since 2025.
pub fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn limit_block_io(block_io: &BlockIo, settings: &mut Settings) -> Result<(), Error> {
    if block_io.leaf_weight.is_some_and(|weight| weight != 0) {
        return Err(refused("blockIO.leafWeight", "is not supported: no Linux since 5.0 has it"));
    }
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        check_weight("blockIO.weight", weight)?;
        settings.set("io", "io.bfq.weight", weight, "blockIO.weight");
    }
    for (index, device) in block_io.weight_device.iter().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        if device.leaf_weight.is_some_and(|weight| weight != 0) {
            return Err(refused(&format!("{field}.leafWeight"), "is not supported: no Linux since 5.0 has it"));
        }
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            check_weight(&format!("{field}.weight"), weight)?;
            settings.set("io", "io.bfq.weight", format!("{}:{} {weight}", device.major, device.minor), field);
        }
    }
    for (key, name, devices) in [
        ("rbps", "throttleReadBpsDevice", &block_io.throttle_read_bps_device),
        ("wbps", "throttleWriteBpsDevice", &block_io.throttle_write_bps_device),
        ("riops", "throttleReadIOPSDevice", &block_io.throttle_read_iops_device),
        ("wiops", "throttleWriteIOPSDevice", &block_io.throttle_write_iops_device),
    ] {
        for (index, device) in devices.iter().enumerate() {
            let value = format!("{}:{} {key}={}", device.major, device.minor, device.rate);
            settings.set("io", "io.max", value, format!("blockIO.{name}[{index}]"));
        }
    }
    Ok(())
}

/// `linux.resources.unified`: files by name, written as they are.
fn unified(key: &str, value: &str, settings: &mut Settings) -> Result<(), Error> {
    let field = format!("unified.{key}");
    let Some((controller, _)) = key.split_once('.').filter(|_| !key.contains(['/', '\0'])) else {
        return Err(refused(&field, "is not the name of a cgroup file"));
    };
    // What makes the cgroup's place in the tree, or its processes, is not a limit.
    const OURS: [&str; 5] = ["cgroup.procs", "cgroup.threads", "cgroup.type", "cgroup.subtree_control", "cgroup.kill"];
    if OURS.contains(&key) {
        return Err(refused(&field, "is not a limit"));
    }
    let controller = CONTROLLERS.iter().find(|known| **known == controller);
    let Some(controller) = controller else {
        return Err(refused(&field, "belongs to no controller that is known"));
    };
    for line in value.lines() {
        settings.set(controller, key.to_owned(), line, field.clone());
    }
    Ok(())
}

/// The controllers of version 2, and `cgroup`, whose files every directory has.
pub const CONTROLLERS: [&str; 9] = ["cgroup", "cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let mut settings = Settings::default();
        let resources: Resources = serde_json::from_value(json).unwrap();
        limits(&resources, &mut settings).map_err(|error| error.to_string())?;
        Ok(settings.writes.iter().map(|write| (write.file.to_string(), write.value.clone())).collect())
    }

    #[test]
    fn shares_become_the_weights_that_other_runtimes_give() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (10, 4),
            (100, 17),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn swap_is_what_is_left_of_the_sum() {
        for (memory, expect) in [
            (serde_json::json!({"limit": 100, "swap": 300}), vec![("memory.swap.max", "200"), ("memory.max", "100")]),
            (serde_json::json!({"limit": 100, "swap": 100}), vec![("memory.swap.max", "0"), ("memory.max", "100")]),
            (serde_json::json!({"limit": 100, "swap": -1}), vec![("memory.swap.max", "max"), ("memory.max", "100")]),
            (serde_json::json!({"limit": -1}), vec![("memory.swap.max", "max"), ("memory.max", "max")]),
            (serde_json::json!({"limit": 100}), vec![("memory.max", "100")]),
            (serde_json::json!({"limit": 0, "reservation": 7}), vec![("memory.low", "7")]),
        ] {
            let expect: Vec<_> = expect.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
            assert_eq!(read(serde_json::json!({"memory": memory.clone()})).unwrap(), expect, "{memory}");
        }
        let error = read(serde_json::json!({"memory": {"swap": 300}})).unwrap_err();
        assert_eq!(error, "linux.resources.memory.swap: needs memory.limit, which it includes");
    }

    #[test]
    fn quota_and_period_are_one_file() {
        for (cpu, expect) in [
            (serde_json::json!({"quota": 50_000}), "50000 100000"),
            (serde_json::json!({"quota": -1, "period": 20_000}), "max 20000"),
            (serde_json::json!({"quota": 5000, "period": 10_000}), "5000 10000"),
        ] {
            assert_eq!(read(serde_json::json!({"cpu": cpu})).unwrap(), [("cpu.max".to_owned(), expect.to_owned())]);
        }
    }

    #[test]
    fn what_version_2_lacks_is_refused_by_name() {
        for (resources, field) in [
            (serde_json::json!({"memory": {"swappiness": 3}}), "memory.swappiness"),
            (serde_json::json!({"memory": {"disableOOMKiller": true}}), "memory.disableOOMKiller"),
            (serde_json::json!({"cpu": {"realtimePeriod": 1000}}), "cpu.realtimePeriod"),
            (serde_json::json!({"network": {"classID": 5}}), "network.classID"),
            (serde_json::json!({"blockIO": {"leafWeight": 50}}), "blockIO.leafWeight"),
            (serde_json::json!({"blockIO": {"weight": 5}}), "blockIO.weight"),
            (serde_json::json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), "hugepageLimits[0].pageSize"),
            (serde_json::json!({"unified": {"../x.y": "1"}}), "unified.../x.y"),
            (serde_json::json!({"unified": {"cgroup.procs": "1"}}), "unified.cgroup.procs"),
            (serde_json::json!({"unified": {"made.up": "1"}}), "unified.made.up"),
        ] {
            let error = read(resources).unwrap_err();
            assert!(error.starts_with(&format!("linux.resources.{field}: ")), "{error}");
        }
    }
}
