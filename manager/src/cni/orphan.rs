//! Plugins that a daemon which was killed has left under way: one that still adds must not outlive the removal of what it
//! adds. They are found by the environment that the protocol gives them, and that those whom they call inherit.
//!
//! Source: SPEC.md, "Protocol parameters"; proc_pid_environ(5), pidfd_open(2).

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Doing as _, Result};

/// Returns when no plugin works for one of these pods any more. Those that take longer than `patience` are killed.
///
/// # Errors
/// The kernel's.
pub fn wait(pods: &HashSet<String>, patience: Duration) -> Result<()> {
    let limit = Instant::now() + patience;
    loop {
        // Again until there is none: one may have started another meanwhile.
        let working = working(pods)?;
        if working.is_empty() {
            return Ok(());
        }
        for process in &working {
            if !has_ended(process, limit.saturating_duration_since(Instant::now()))? {
                tracing::warn!("a network plugin of an earlier daemon does not end: it is killed");
                match pidfd_send_signal(process, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => has_ended(process, patience)?,
                    Err(errno) => return Err(errno).doing(|| "killing a network plugin".into()),
                };
            }
        }
    }
}

fn working(pods: &HashSet<String>) -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    if pods.is_empty() {
        return Ok(found);
    }
    for entry in fs::read_dir("/proc").doing(|| "reading /proc".into())?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else { continue };
        if !works_for(pid, pods) {
            continue;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Whose id is somebody else's by now has another environment.
            Ok(process) if works_for(pid, pods) => found.push(process),
            Ok(_) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).doing(|| format!("opening process {}", pid.as_raw_nonzero())),
        }
    }
    Ok(found)
}

fn works_for(pid: Pid, pods: &HashSet<String>) -> bool {
    // One that cannot be read has ended.
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    variables.any(|variable| variable.strip_prefix("CNI_CONTAINERID=").is_some_and(|id| pods.contains(id)))
}

fn has_ended(process: &OwnedFd, within: Duration) -> Result<bool> {
    let within = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut ended, Some(&within)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno).doing(|| "waiting for a network plugin".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that says that it is there, and then waits for the end of its input.
    fn plugin(pod: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "echo; read x"]).env("CNI_CONTAINERID", pod);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn a_plugin_that_works_for_one_of_our_pods_is_waited_for_and_no_other() {
        let own = format!("pod-{}", std::process::id());
        let pods = HashSet::from([own.clone()]);
        let (mut ours, mut other) = (plugin(&own), plugin(&format!("{own}-other")));
        assert_eq!(working(&pods).unwrap().len(), 1);
        let waiting = std::thread::spawn({
            let pods = pods.clone();
            move || wait(&pods, Duration::from_secs(60))
        });
        drop(ours.stdin.take());
        waiting.join().unwrap().unwrap();
        assert!(ours.wait().unwrap().code().is_some(), "it was not killed");
        assert!(other.try_wait().unwrap().is_none());

        let mut hangs = plugin(&own);
        let _held = hangs.stdin.take(); // `wait` would close it
        let reaper = std::thread::spawn(move || hangs.wait().unwrap().code());
        wait(&pods, Duration::ZERO).unwrap();
        assert_eq!(reaper.join().unwrap(), None, "it was killed");
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
