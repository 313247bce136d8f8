//! `linux.resources` in the files of version 1.
//!
//! Source: kernel Documentation/admin-guide/cgroup-v1/, scheduler/sched-bwc.rst.

use crate::cgroup::Error;
use crate::cgroup::settings::{Settings, bytes, check_weight, refused};
use crate::spec::{BlockIo, Cpu, Memory, Resources};

/// Adds what `resources` asks for.
pub fn limits(resources: &Resources, settings: &mut Settings) -> Result<(), Error> {
    if let Some(memory) = &resources.memory {
        limit_memory(memory, settings);
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(cpu, settings);
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        settings.set("pids", "pids.max", pids(limit), "pids.limit");
    }
    if let Some(block_io) = &resources.block_io {
        limit_block_io(block_io, settings)?;
    }
    settings.set_huge_pages(resources, "limit_in_bytes")?;
    if let Some(network) = &resources.network {
        if let Some(class) = network.class_id.filter(|class| *class != 0) {
            settings.set("net_cls", "net_cls.classid", class, "network.classID");
        }
        for (index, interface) in network.priorities.iter().enumerate() {
            let value = format!("{} {}", interface.name, interface.priority);
            settings.set("net_prio", "net_prio.ifpriomap", value, format!("network.priorities[{index}]"));
        }
    }
    for (device, limit) in &resources.rdma {
        for (name, value) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(value) = value {
                settings.set("rdma", "rdma.max", format!("{device} {name}={value}"), format!("rdma.{device}"));
            }
        }
    }
    match resources.unified.keys().next() {
        Some(key) => Err(refused(
            &format!("unified.{key}"),
            "invalid configuration: needs cgroup version 2, and this host has version 1",
        )),
        None => Ok(()),
    }
}

fn limit_memory(memory: &Memory, settings: &mut Settings) {
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(limit) = given(memory.limit) {
        settings.set("memory", "memory.limit_in_bytes", bytes(limit, "-1"), "memory.limit");
    }
    if let Some(reservation) = given(memory.reservation) {
        settings.set("memory", "memory.soft_limit_in_bytes", bytes(reservation, "-1"), "memory.reservation");
    }
    // No limit on memory with one on memory and swap together is no limit at all; so it is with runc.
    if let Some(swap) = given(memory.swap).or(memory.limit.filter(|limit| *limit == -1)) {
        settings.set("memory", "memory.memsw.limit_in_bytes", bytes(swap, "-1"), "memory.swap");
    }
    if let Some(swappiness) = memory.swappiness {
        settings.set("memory", "memory.swappiness", swappiness, "memory.swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        settings.set("memory", "memory.oom_control", 1, "memory.disableOOMKiller");
    }
}

fn limit_cpu(cpu: &Cpu, settings: &mut Settings) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        settings.set("cpu", "cpu.shares", shares, "cpu.shares");
    }
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        settings.set("cpu", "cpu.cfs_period_us", period, "cpu.period");
    }
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        settings.set("cpu", "cpu.cfs_quota_us", quota.max(-1), "cpu.quota");
    }
    if let Some(burst) = cpu.burst {
        settings.set("cpu", "cpu.cfs_burst_us", burst, "cpu.burst");
    }
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        settings.set("cpu", "cpu.rt_period_us", period, "cpu.realtimePeriod");
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        settings.set("cpu", "cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime");
    }
    if let Some(idle) = cpu.idle {
        settings.set("cpu", "cpu.idle", idle, "cpu.idle");
    }
    if !cpu.cpus.is_empty() {
        settings.set("cpuset", "cpuset.cpus", &cpu.cpus, "cpu.cpus");
    }
    if !cpu.mems.is_empty() {
        settings.set("cpuset", "cpuset.mems", &cpu.mems, "cpu.mems");
    }
}

/// A limit of 0 would not even let the first process in: it becomes 1, as in runc.
fn pids(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.max(1).to_string() }
}

fn limit_block_io(block_io: &BlockIo, settings: &mut Settings) -> Result<(), Error> {
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        check_weight("blockIO.weight", weight)?;
        settings.set("blkio", "blkio.bfq.weight", weight, "blockIO.weight");
    }
    // Only the CFQ scheduler knew leaves, and Linux 5.0 removed it.
    if block_io.leaf_weight.is_some_and(|weight| weight != 0) {
        return Err(refused("blockIO.leafWeight", "is not supported: no Linux since 5.0 has it"));
    }
    for (index, device) in block_io.weight_device.iter().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        if device.leaf_weight.is_some_and(|weight| weight != 0) {
            return Err(refused(&format!("{field}.leafWeight"), "is not supported: no Linux since 5.0 has it"));
        }
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            check_weight(&format!("{field}.weight"), weight)?;
            let value = format!("{}:{} {weight}", device.major, device.minor);
            settings.set("blkio", "blkio.bfq.weight_device", value, field);
        }
    }
    for (file, name, devices) in [
        ("blkio.throttle.read_bps_device", "throttleReadBpsDevice", &block_io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", "throttleWriteBpsDevice", &block_io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", "throttleReadIOPSDevice", &block_io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", "throttleWriteIOPSDevice", &block_io.throttle_write_iops_device),
    ] {
        for (index, device) in devices.iter().enumerate() {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            settings.set("blkio", file, value, format!("blockIO.{name}[{index}]"));
        }
    }
    Ok(())
}
