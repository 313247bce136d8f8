//! How a process gets processors, disks and memory.

use super::list::{Mask, read};
use crate::bundle::{Error, refused};
use crate::spec;
use crate::sys::SchedAttr;

/// Numbers as the kernel takes them.
#[derive(Debug, Clone, Default)]
pub struct Scheduling {
    pub attributes: Option<SchedAttr>,
    pub io_priority: Option<i32>,
    pub memory_policy: Option<(i32, Vec<u64>)>,
    /// Where it may run once it is in its cgroup.
    pub processors: Processors,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Processors {
    /// Wherever its cgroup lets it, however few the runtime itself was confined to.
    #[default]
    All,
    Only(Mask),
}

/// Source: sched(7), linux/sched.h.
const POLICIES: &[(&str, u32)] = &[
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// Source: sched_setattr(2), linux/sched.h.
const FLAGS: &[(&str, u64)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Source: ioprio_set(2).
const IO_CLASSES: &[(&str, i32)] = &[("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// Source: set_mempolicy(2), linux/mempolicy.h. The last says whether nodes have to be given, may be, or must not.
const MEMORY_MODES: &[(&str, i32, Nodes)] = &[
    ("MPOL_DEFAULT", 0, Nodes::None),
    ("MPOL_PREFERRED", 1, Nodes::Maybe),
    ("MPOL_BIND", 2, Nodes::Some),
    ("MPOL_INTERLEAVE", 3, Nodes::Some),
    ("MPOL_LOCAL", 4, Nodes::None),
    ("MPOL_PREFERRED_MANY", 5, Nodes::Some),
    ("MPOL_WEIGHTED_INTERLEAVE", 6, Nodes::Some),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nodes {
    None,
    Maybe,
    Some,
}

const MEMORY_FLAGS: &[(&str, i32)] =
    &[("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];

/// For `features`.
pub fn memory_modes() -> impl Iterator<Item = &'static str> {
    MEMORY_MODES.iter().map(|(name, _, _)| *name)
}

/// For `features`.
pub fn memory_flags() -> impl Iterator<Item = &'static str> {
    MEMORY_FLAGS.iter().map(|(name, _)| *name)
}

fn number<T: Copy>(table: &[(&str, T)], field: &str, word: &str) -> Result<T, Error> {
    match table.iter().find(|(known, _)| *known == word) {
        Some((_, number)) => Ok(*number),
        None => refused(field, format!("{word:?} is not known")),
    }
}

/// Source: runtime-spec config.md, "scheduler".
pub fn attributes(asked: &spec::Scheduler) -> Result<SchedAttr, Error> {
    let policy = number(POLICIES, "process.scheduler.policy", &asked.policy)?;
    let realtime = matches!(asked.policy.as_str(), "SCHED_FIFO" | "SCHED_RR");
    let deadline = asked.policy == "SCHED_DEADLINE";
    if !(-20..=19).contains(&asked.nice) {
        return refused("process.scheduler.nice", format!("{} is not between -20 and 19", asked.nice));
    }
    if asked.priority != 0 && !realtime {
        return refused("process.scheduler.priority", "can only be specified for SCHED_FIFO and SCHED_RR");
    }
    let Ok(priority) = u32::try_from(asked.priority) else {
        return refused("process.scheduler.priority", format!("{} is below zero", asked.priority));
    };
    if (asked.runtime, asked.deadline, asked.period) != (0, 0, 0) && !deadline {
        return refused("process.scheduler", "runtime, deadline and period can only be specified for SCHED_DEADLINE");
    }
    let mut flags = 0;
    for word in &asked.flags {
        flags |= number(FLAGS, "process.scheduler.flags", word)?;
    }
    Ok(SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: asked.nice,
        priority,
        runtime: asked.runtime,
        deadline: asked.deadline,
        period: asked.period,
        ..SchedAttr::default()
    })
}

/// Source: runtime-spec config.md, "ioPriority"; ioprio_set(2): the class lies above 13 bits of priority.
pub fn io_priority(asked: &spec::IoPriority) -> Result<i32, Error> {
    let class = number(IO_CLASSES, "process.ioPriority.class", &asked.class)?;
    if !(0..=7).contains(&asked.priority) {
        return refused("process.ioPriority.priority", format!("{} is not between 0 and 7", asked.priority));
    }
    Ok(class << 13 | asked.priority)
}

/// Source: runtime-spec config-linux.md, "Memory policy".
pub fn memory_policy(asked: &spec::MemoryPolicy) -> Result<(i32, Vec<u64>), Error> {
    let Some((_, mode, nodes)) = MEMORY_MODES.iter().find(|(known, _, _)| *known == asked.mode) else {
        return refused("linux.memoryPolicy.mode", format!("invalid memory policy mode {:?}", asked.mode));
    };
    let mask = match (nodes, asked.nodes.is_empty()) {
        (Nodes::None | Nodes::Maybe, true) => Vec::new(),
        (Nodes::None, false) => return refused("linux.memoryPolicy.nodes", format!("{} takes no nodes", asked.mode)),
        (Nodes::Some, true) => return refused("linux.memoryPolicy.nodes", format!("{} needs nodes", asked.mode)),
        (_, false) => match read(&asked.nodes) {
            Ok(mask) => mask.to_vec(),
            Err(why) => return refused("linux.memoryPolicy.nodes", why),
        },
    };
    let mut flags = 0;
    for word in &asked.flags {
        flags |= number(MEMORY_FLAGS, "linux.memoryPolicy.flags", word)?;
    }
    Ok((*mode | flags, mask))
}

/// One half of `process.execCPUAffinity`, if it is given.
pub fn processors(half: &str, list: &str) -> Result<Option<Mask>, Error> {
    if list.is_empty() {
        return Ok(None);
    }
    read(list).map(Some).or_else(|why| refused(format!("process.execCPUAffinity.{half}"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T>(answer: Result<T, Error>) -> String {
        answer.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_policy_takes_its_own_numbers_only() {
        let asked = |policy: &str| spec::Scheduler { policy: policy.into(), ..spec::Scheduler::default() };
        assert_eq!(attributes(&asked("SCHED_IDLE")).unwrap().policy, 5);
        assert!(said(attributes(&asked("SCHED_NONE"))).starts_with("process.scheduler.policy: "));
        let with_priority = |policy: &str| spec::Scheduler { priority: 5, ..asked(policy) };
        assert_eq!(attributes(&with_priority("SCHED_RR")).unwrap().priority, 5);
        assert!(said(attributes(&with_priority("SCHED_OTHER"))).starts_with("process.scheduler.priority: "));
        let timed = |policy: &str| spec::Scheduler { period: 7, ..asked(policy) };
        assert_eq!(attributes(&timed("SCHED_DEADLINE")).unwrap().period, 7);
        assert!(said(attributes(&timed("SCHED_FIFO"))).starts_with("process.scheduler: "));
        assert!(said(attributes(&spec::Scheduler { nice: 20, ..asked("SCHED_BATCH") })).contains("nice"));
        let flags = vec!["SCHED_FLAG_RESET_ON_FORK".into(), "SCHED_FLAG_RECLAIM".into()];
        assert_eq!(attributes(&spec::Scheduler { flags, ..asked("SCHED_OTHER") }).unwrap().flags, 3);
    }

    #[test]
    fn an_io_priority_is_a_class_and_a_number() {
        let asked = |class: &str, priority| spec::IoPriority { class: class.into(), priority };
        assert_eq!(io_priority(&asked("IOPRIO_CLASS_BE", 4)).unwrap(), 2 << 13 | 4);
        assert!(said(io_priority(&asked("IOPRIO_CLASS_BE", 8))).contains("ioPriority.priority"));
        assert!(said(io_priority(&asked("BE", 1))).contains("ioPriority.class"));
    }

    #[test]
    fn a_memory_policy_has_nodes_where_its_mode_needs_them() {
        let asked = |mode: &str, nodes: &str| {
            memory_policy(&spec::MemoryPolicy { mode: mode.into(), nodes: nodes.into(), ..Default::default() })
        };
        assert_eq!(asked("MPOL_BIND", "0,2").unwrap().1[0], 5);
        assert_eq!(asked("MPOL_LOCAL", "").unwrap(), (4, vec![]));
        assert_eq!(asked("MPOL_PREFERRED", "").unwrap(), (1, vec![]));
        assert!(said(asked("MPOL_BIND", "")).contains("needs nodes"));
        assert!(said(asked("MPOL_DEFAULT", "0")).contains("takes no nodes"));
        assert!(said(asked("MPOL_NONE", "0")).contains("invalid memory policy mode"));
    }
}
