//! The system calls between clone and exec, ours beside the floor's, so that a floor that does less than it should shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tare_integration::programs;

/// How often each call was made by the process that became the container's program.
type Calls = BTreeMap<String, i64>;

/// Both commands, run once under strace: how many calls each child makes, and how many of each more than the other's.
///
/// # Errors
/// A command failed, or its trace shows no process that changes its root and then executes a program.
pub fn compare(ours: &Command, floor: &Command, dir: &Path) -> Result<Value> {
    let (ours, floor) = (child(ours, &dir.join("ours"))?, child(floor, &dir.join("floor"))?);
    let more = |left: &Calls, right: &Calls| -> Calls {
        let less = |name| left[name] - right.get(name).unwrap_or(&0);
        left.keys().map(|name| (name.clone(), less(name))).filter(|(_, times)| *times > 0).collect()
    };
    Ok(json!({
        "tare": ours.values().sum::<i64>(),
        "floor": floor.values().sum::<i64>(),
        "more in tare": more(&ours, &floor),
        "more in floor": more(&floor, &ours),
    }))
}

fn child(command: &Command, trace: &Path) -> Result<Calls> {
    let mut strace = Command::new(programs::peer("tools", "strace")?);
    strace.args(["-f", "-qq", "-o"]).arg(trace).arg(command.get_program()).args(command.get_args());
    let status = strace.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{strace:?} ended with {status}");
    let text = String::from_utf8_lossy(&std::fs::read(trace)?).into_owned();
    count(&text).with_context(|| format!("no process of {command:?} changes its root and then executes a program"))
}

/// Counts the calls of the process that calls pivot_root, up to the execve that follows. `strace -f -o` writes
/// `PID NAME(ARGUMENTS) = RESULT`, and a call that another process interrupts in two lines, of which the second has no name.
fn count(trace: &str) -> Option<Calls> {
    let lines = || {
        trace.lines().filter_map(|line| {
            let (pid, rest) = line.split_once(' ')?;
            let (name, _) = rest.trim_start().split_once('(')?;
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            named.then_some((pid, name))
        })
    };
    let (child, _) = lines().find(|(_, name)| *name == "pivot_root")?;
    let mut calls = Calls::new();
    for (_, name) in lines().filter(|(pid, _)| *pid == child) {
        *calls.entry(name.to_owned()).or_default() += 1;
        if name == "execve" {
            return Some(calls);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_changes_its_root_counts_and_only_until_it_executes() {
        let trace = "1 clone3({}, 88) = 2\n2 mount(a) = 0\n1 mount(b <unfinished ...>\n2 pivot_root(\".\") = 0\n\
                     1 <... mount resumed>) = 0\n2 mount(c) = 0\n2 execve(\"/bin/true\") = 0\n2 brk(NULL) = 0\n";
        let calls = count(trace).expect("a child");
        assert_eq!(calls, Calls::from([("mount".into(), 2), ("pivot_root".into(), 1), ("execve".into(), 1)]));
    }

    #[test]
    fn a_trace_without_a_child_counts_nothing() {
        assert_eq!(count("1 execve(\"/bin/true\") = 0\n"), None);
    }
}
