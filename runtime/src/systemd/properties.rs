//! A scope's properties: what it is, and `linux.resources` in systemd's words. systemd sets the limits that it knows of anew
//! whenever it reloads, so it has to know them.
//!
//! Source: systemd.resource-control(5), org.freedesktop.systemd1(5); the translations are runc's.

use std::collections::BTreeMap;

use super::{Error, Property};
use crate::cgroup::{DeviceList, list_devices, unified_memory_swap, weight_from_shares};
use crate::dbus::{Value, read_text};
use crate::spec::Resources;

/// The first version in which a weight of 0 means `cpu.idle`.
pub const KNOWS_IDLE: u32 = 252;

/// The kernel's default, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// What every container's scope is.
pub fn of_scope(id: &str, slice: &str, version_1: bool) -> Vec<Property> {
    let yes = |name: &str| property(name, Value::Bool(true));
    vec![
        property("Description", Value::str(format!("tare container {id}"))),
        property("Slice", Value::str(slice)),
        yes("Delegate"),
        yes("MemoryAccounting"),
        yes("CPUAccounting"),
        yes(if version_1 { "BlockIOAccounting" } else { "IOAccounting" }),
        yes("TasksAccounting"),
        property("DefaultDependencies", Value::Bool(false)),
    ]
}

/// `org.systemd.property.NAME` annotations. A time given in seconds becomes what systemd takes, microseconds.
///
/// Source: runc's docs/systemd-properties.md.
pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>, Error> {
    const PREFIX: &str = "org.systemd.property.";
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let refused = |why: &str| Error::Refused { field: format!("annotations.{key}"), why: why.into() };
        if name.len() < 3 || !name.bytes().all(|letter| letter.is_ascii_alphabetic()) {
            return Err(refused("is not the name of a property"));
        }
        let value = read_text(text).ok_or_else(|| refused(&format!("{text:?} is not a value in GVariant's format")))?;
        properties.push(match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            None => property(name, value),
            Some(stem) => {
                let micro = seconds(&value).ok_or_else(|| refused(&format!("{text:?} is not a number of seconds")))?;
                (format!("{stem}USec"), Value::U64(micro))
            }
        });
    }
    Ok(properties)
}

fn seconds(value: &Value) -> Option<u64> {
    let number = match value {
        Value::U64(number) => *number,
        Value::U32(number) => u64::from(*number),
        Value::I32(number) => u64::try_from(*number).ok()?,
        Value::I64(number) => u64::try_from(*number).ok()?,
        _ => return None,
    };
    number.checked_mul(1_000_000)
}

/// What systemd does when the kernel kills for want of memory: as `memory.oom.group` has it.
pub fn oom_policy(resources: &Resources) -> Option<Property> {
    match resources.unified.get("memory.oom.group")?.trim() {
        "0" => Some(property("OOMPolicy", Value::str("continue"))),
        "1" => Some(property("OOMPolicy", Value::str("kill"))),
        _ => None, // refused by the kernel, with the field's name
    }
}

/// Limits that are set; the others stay as they are.
pub fn limits(resources: &Resources, version_1: bool, knows_idle: bool) -> Result<Vec<Property>, Error> {
    let mut properties = Vec::new();
    let mut set = |name: &str, value: Value| properties.push(property(name, value));
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(memory) = &resources.memory {
        if let Some(limit) = given(memory.limit) {
            set(if version_1 { "MemoryLimit" } else { "MemoryMax" }, bytes(limit));
        }
        if !version_1 {
            if let Some(low) = given(memory.reservation) {
                set("MemoryLow", bytes(low));
            }
            if let Some(swap) = unified_memory_swap(memory)? {
                set("MemorySwapMax", number(&swap, "memory.swap")?);
            }
        }
    }
    if let Some(cpu) = &resources.cpu {
        let idle = cpu.idle == Some(1) && !version_1;
        if idle && knows_idle {
            set("CPUWeight", Value::U64(0));
        }
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !idle) {
            match version_1 {
                true => set("CPUShares", Value::U64(shares)),
                false => set("CPUWeight", Value::U64(weight_from_shares(shares))),
            }
        }
        quota(cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0), &mut set);
        for (name, field, list) in
            [("AllowedCPUs", "cpu.cpus", &cpu.cpus), ("AllowedMemoryNodes", "cpu.mems", &cpu.mems)]
        {
            if !list.is_empty() {
                set(name, bits(list, field)?);
            }
        }
    }
    if version_1
        && let Some(weight) =
            resources.block_io.as_ref().and_then(|block_io| block_io.weight).filter(|weight| *weight != 0)
    {
        set("BlockIOWeight", Value::U64(weight.into()));
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        set("TasksMax", Value::U64(u64::try_from(limit).map_or(u64::MAX, |limit| limit.max(1))));
    }
    for (key, text) in &resources.unified {
        unified(key, text.trim(), resources, knows_idle, &mut set)?;
    }
    Ok(properties)
}

/// Files of version 2 that systemd has a property for.
fn unified(
    key: &str,
    text: &str,
    resources: &Resources,
    knows_idle: bool,
    set: &mut impl FnMut(&str, Value),
) -> Result<(), Error> {
    let idle = resources.unified.get("cpu.idle").is_some_and(|idle| idle.trim() == "1");
    let field = || format!("unified.{key}");
    match key {
        "cpu.idle" if idle && knows_idle => set("CPUWeight", Value::U64(0)),
        "cpu.weight" if !idle => set("CPUWeight", number(text, &field())?),
        "cpu.max" => {
            let mut words = text.split_whitespace();
            let parsed = |word: &str| word.parse::<u64>().map_err(|_| refused(&field(), text));
            let limit = match words.next() {
                Some("max") => -1,
                word => i64::try_from(parsed(word.unwrap_or(""))?).unwrap_or(-1),
            };
            quota(limit, words.next().map(parsed).transpose()?.unwrap_or(DEFAULT_PERIOD), set);
        }
        "cpuset.cpus" => set("AllowedCPUs", bits(text, &field())?),
        "cpuset.mems" => set("AllowedMemoryNodes", bits(text, &field())?),
        "memory.high" => set("MemoryHigh", number(text, &field())?),
        "memory.low" => set("MemoryLow", number(text, &field())?),
        "memory.min" => set("MemoryMin", number(text, &field())?),
        "memory.max" => set("MemoryMax", number(text, &field())?),
        "memory.swap.max" => set("MemorySwapMax", number(text, &field())?),
        "pids.max" => set("TasksMax", number(text, &field())?),
        _ => {} // the file alone is set
    }
    Ok(())
}

/// systemd wants the time in a second, and whole hundredths of it; a file that we write later has the exact quota.
fn quota(quota: i64, period: u64, set: &mut impl FnMut(&str, Value)) {
    const HUNDREDTH: u64 = 10_000;
    if period != 0 {
        set("CPUQuotaPeriodUSec", Value::U64(period));
    }
    if quota == 0 && period == 0 {
        return;
    }
    let period = if period == 0 { DEFAULT_PERIOD } else { period };
    let in_a_second = match u64::try_from(quota) {
        Ok(quota) if quota > 0 => (quota.saturating_mul(1_000_000) / period).next_multiple_of(HUNDREDTH),
        _ => u64::MAX,
    };
    set("CPUQuotaPerSecUSec", Value::U64(in_a_second));
}

fn bytes(limit: i64) -> Value {
    Value::U64(u64::try_from(limit).unwrap_or(u64::MAX)) // -1 and u64's maximum both say: no limit
}

fn number(text: &str, field: &str) -> Result<Value, Error> {
    match text {
        "max" => Ok(Value::U64(u64::MAX)),
        text => text.parse().map(Value::U64).map_err(|_| refused(field, text)),
    }
}

fn refused(field: &str, text: &str) -> Error {
    Error::Refused { field: format!("linux.resources.{field}"), why: format!("{text:?} cannot be told to systemd") }
}

/// A list of numbers like `0-3,7` as a set of bits, the lowest first.
fn bits(list: &str, field: &str) -> Result<Value, Error> {
    const HIGHEST: usize = 65_535;
    let mut bytes = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last <= HIGHEST => {
                bytes.resize(bytes.len().max(last / 8 + 1), 0);
                (first..=last).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
            }
            _ => return Err(refused(field, list)),
        }
    }
    Ok(Value::bytes(&bytes))
}

/// Device rules as a list of what is allowed, which is all that systemd knows. The list comes before the policy: systemd
/// tells a reload apart from a change by their order.
pub fn devices(resources: &Resources) -> Result<Vec<Property>, Error> {
    let (policy, list) = match list_devices(&resources.devices)? {
        DeviceList::Allowed(list) => ("strict", list),
        // Ours alone then decides: what systemd forbids, nothing else can allow.
        DeviceList::NotSayable => ("auto", Vec::new()),
    };
    let entry = |(node, access): (String, String)| Value::Struct(vec![Value::Str(node), Value::Str(access)]);
    Ok(vec![
        property("DeviceAllow", Value::Array("(ss)".into(), list.into_iter().map(entry).collect())),
        property("DevicePolicy", Value::str(policy)),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(resources: serde_json::Value, version_1: bool) -> Vec<Property> {
        limits(&serde_json::from_value(resources).unwrap(), version_1, true).unwrap()
    }

    fn expect(properties: &[(&str, u64)]) -> Vec<Property> {
        properties.iter().map(|(name, number)| property(name, Value::U64(*number))).collect()
    }

    #[test]
    fn limits_are_told_in_systemds_words() {
        for (resources, properties) in [
            (
                json!({"memory": {"limit": 100, "swap": 300, "reservation": 50}}),
                expect(&[("MemoryMax", 100), ("MemoryLow", 50), ("MemorySwapMax", 200)]),
            ),
            (json!({"memory": {"limit": -1}}), expect(&[("MemoryMax", u64::MAX), ("MemorySwapMax", u64::MAX)])),
            (json!({"cpu": {"shares": 1024}}), expect(&[("CPUWeight", 100)])),
            (json!({"cpu": {"shares": 1024, "idle": 1}}), expect(&[("CPUWeight", 0)])),
            (json!({"cpu": {"quota": 50_000}}), expect(&[("CPUQuotaPerSecUSec", 500_000)])),
            (
                json!({"cpu": {"quota": 33_333, "period": 100_000}}),
                expect(&[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", 340_000)]),
            ),
            (
                json!({"cpu": {"quota": -1, "period": 100_000}}),
                expect(&[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", u64::MAX)]),
            ),
            (json!({"pids": {"limit": 0}}), expect(&[("TasksMax", 1)])),
            (json!({"pids": {"limit": -1}}), expect(&[("TasksMax", u64::MAX)])),
            (
                json!({"unified": {"cpu.max": "max 50000", "memory.high": "5", "pids.max": "max", "misc.max": "x"}}),
                expect(&[
                    ("CPUQuotaPeriodUSec", 50_000),
                    ("CPUQuotaPerSecUSec", u64::MAX),
                    ("MemoryHigh", 5),
                    ("TasksMax", u64::MAX),
                ]),
            ),
        ] {
            assert_eq!(told(resources.clone(), false), properties, "{resources}");
        }
        let old = json!({"memory": {"limit": 100, "swap": 300}, "cpu": {"shares": 7}, "blockIO": {"weight": 300}});
        assert_eq!(told(old, true), expect(&[("MemoryLimit", 100), ("CPUShares", 7), ("BlockIOWeight", 300)]));
        assert!(told(json!({}), false).is_empty());
    }

    #[test]
    fn lists_of_processors_are_bits() {
        let properties = told(json!({"cpu": {"cpus": "0-2,9", "mems": "0"}}), false);
        assert_eq!(properties[0], property("AllowedCPUs", Value::bytes(&[0b111, 0b10])));
        assert_eq!(properties[1], property("AllowedMemoryNodes", Value::bytes(&[1])));
    }

    #[test]
    fn annotations_are_properties_and_seconds_are_turned_into_microseconds() {
        let read = |pairs: &[(&str, &str)]| {
            let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            from_annotations(&annotations).map_err(|error| error.to_string())
        };
        let properties = read(&[
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.TimeoutStopSec", "7"),
            ("org.systemd.property.TimeoutStopUSec", "uint64 9"),
            ("other", "x"),
        ]);
        let expected = [
            property("CollectMode", Value::str("inactive-or-failed")),
            property("TimeoutStopUSec", Value::U64(7_000_000)),
            property("TimeoutStopUSec", Value::U64(9)),
        ];
        assert_eq!(properties.unwrap(), expected);
        for (key, value, why) in [
            ("org.systemd.property.a b c", "1", "is not the name of a property"),
            ("org.systemd.property.Wants", "x", "\"x\" is not a value in GVariant's format"),
            ("org.systemd.property.StopSec", "'x'", "\"'x'\" is not a number of seconds"),
        ] {
            assert_eq!(read(&[(key, value)]).unwrap_err(), format!("annotations.{key}: {why}"));
        }
    }

    #[test]
    fn devices_are_named_before_they_are_limited() {
        let rules = json!({"devices": [
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rw"},
        ]});
        let properties = devices(&serde_json::from_value(rules).unwrap()).unwrap();
        assert_eq!(properties[1], property("DevicePolicy", Value::str("strict")));
        let Value::Array(_, entries) = &properties[0].1 else { panic!("{properties:?}") };
        let entry = |node: &str, access: &str| Value::Struct(vec![Value::str(node), Value::str(access)]);
        for expected in [entry("/dev/block/8:0", "rw"), entry("/dev/char/1:3", "rwm"), entry("char-*", "m")] {
            assert!(entries.contains(&expected), "{entries:?}");
        }
        let all = json!({"devices": [{"allow": true, "access": "rwm"}]});
        let properties = devices(&serde_json::from_value(all).unwrap()).unwrap();
        assert_eq!(properties[1], property("DevicePolicy", Value::str("auto")));
    }
}
