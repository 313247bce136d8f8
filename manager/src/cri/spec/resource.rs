//! Limits, as CRI counts them and as the runtime reads them.

use serde_json::{Map, Value, json};
use tare_proto::runtime::v1 as pb;

use super::Host;
use crate::error::{Error, Result};

/// What is zero or empty is left as it is.
///
/// # Errors
/// `InvalidArgument`: a number that cannot be.
pub fn resources(asked: &pb::LinuxContainerResources, host: &Host) -> Result<Value> {
    let mut resources = Map::new();
    let mut cpu = Map::new();
    let mut put = |key: &str, number: i64, field: &str| {
        if number < 0 && key != "quota" {
            return Err(Error::InvalidArgument(format!("resources.{field}: {number} is negative")));
        }
        if number != 0 {
            cpu.insert(key.to_owned(), json!(number));
        }
        Ok(())
    };
    put("period", asked.cpu_period, "cpu_period")?;
    put("quota", asked.cpu_quota, "cpu_quota")?;
    put("shares", asked.cpu_shares, "cpu_shares")?;
    for (key, set) in [("cpus", &asked.cpuset_cpus), ("mems", &asked.cpuset_mems)] {
        if !set.is_empty() {
            cpu.insert(key.into(), json!(set));
        }
    }
    if !cpu.is_empty() {
        resources.insert("cpu".into(), Value::Object(cpu));
    }
    let (limit, swap) = (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    if limit != 0 || swap != 0 {
        let mut memory = Map::new();
        if limit != 0 {
            memory.insert("limit".into(), json!(limit));
        }
        // A limit of memory alone would be one of memory and twice as much swap.
        let swap = if swap == 0 { limit } else { swap };
        if host.counts_swap {
            memory.insert("swap".into(), json!(swap));
        }
        resources.insert("memory".into(), Value::Object(memory));
    }
    if !asked.hugepage_limits.is_empty() && host.counts_hugepages {
        let limits = asked.hugepage_limits.iter();
        let limits: Vec<Value> = limits.map(|one| json!({"pageSize": one.page_size, "limit": one.limit})).collect();
        resources.insert("hugepageLimits".into(), Value::Array(limits));
    }
    if !asked.unified.is_empty() {
        resources.insert("unified".into(), json!(asked.unified));
    }
    Ok(Value::Object(resources))
}
