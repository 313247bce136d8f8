//! The process, of config.json or of `exec`.

use std::collections::BTreeSet;

use super::{Error, refused};
use crate::plan::{label, scheduling};
use crate::spec;

/// Refuses a process, of config.json or of `exec`, that cannot be done.
///
/// # Errors
/// The first field that is malformed or not supported.
pub fn check_process(process: &spec::Process) -> Result<(), Error> {
    if process.args.is_empty() || process.args[0].is_empty() {
        return refused("process.args", "empty: there is nothing to run");
    }
    if !process.cwd.starts_with('/') {
        return refused("process.cwd", format!("{:?} is not an absolute path", process.cwd));
    }
    for (index, variable) in process.env.iter().enumerate() {
        if variable.find('=').is_none_or(|at| at == 0) {
            return refused(format!("process.env[{index}]"), format!("{variable:?} is not NAME=VALUE"));
        }
    }
    if let Some(scheduler) = &process.scheduler {
        scheduling::attributes(scheduler)?;
    }
    if let Some(priority) = &process.io_priority {
        scheduling::io_priority(priority)?;
    }
    if let Some(affinity) = &process.exec_cpu_affinity {
        scheduling::processors("initial", &affinity.initial)?;
        scheduling::processors("final", &affinity.last)?;
    }
    label::check(process)?;
    let mut kinds = BTreeSet::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = || format!("process.rlimits[{index}]");
        if crate::plan::rlimit(&limit.kind).is_none() {
            return refused(field() + ".type", format!("{:?} is not a limit", limit.kind));
        }
        if !kinds.insert(&limit.kind) {
            return refused(field() + ".type", format!("{} is there twice", limit.kind));
        }
        if limit.soft > limit.hard {
            return refused(field() + ".soft", format!("{} is above the hard limit {}", limit.soft, limit.hard));
        }
    }
    Ok(())
}
