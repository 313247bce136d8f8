//! `tare kill`: a signal to the container's first process.
//!
//! Source: runtime-spec runtime.md, "Kill"; runc-kill(8).

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::flags::{Flag, Order, parse, switch};
use super::{Error, Global};
use crate::cgroup::Cgroup;
use crate::error::Doing as _;
use crate::state::{Id, State, StateDir, Status};

const FLAGS: &[Flag] = &[switch(&["all", "a"])];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let (id, signal) = match parsed.words.as_slice() {
        [id] => (id, "SIGTERM"),
        [id, signal] => (id, signal.as_str()),
        _ => return Err(Error::Usage("\"kill\" requires a container's id and at most a signal".into())),
    };
    let signal = number(signal)?;
    let entry = StateDir::look(&global.root, &Id::new(id)?);
    let state = entry.read()?;
    let all = parsed.is_set("all");
    let rest = signal == libc::SIGKILL && !state.own_pid_namespace && has_processes(&state);
    match state.status(&entry) {
        // Its first process has ended, and nothing has taken the others along.
        Status::Stopped if rest => {}
        Status::Stopped | Status::Creating if all => return Ok(0),
        Status::Stopped | Status::Creating => return Err(Error::Refused("container not running".into())),
        Status::Created | Status::Running | Status::Paused => {}
    }
    if signal == libc::SIGKILL && !state.own_pid_namespace {
        end(&state)?; // nobody else would take the others along
    } else {
        send(&state, signal)?;
    }
    Ok(0)
}

fn has_processes(state: &State) -> bool {
    let pids = state.cgroup.clone().map(|path| Cgroup::open(path).pids());
    pids.is_some_and(|pids| pids.is_ok_and(|pids| !pids.is_empty()))
}

fn send(state: &State, signal: i32) -> Result<(), Error> {
    let pidfd = state.pidfd().ok_or_else(|| Error::Refused("container not running".into()))?;
    let sent = match Signal::from_named_raw(signal) {
        _ if signal == 0 => Ok(()), // it lives: that was the question
        Some(signal) => pidfd_send_signal(&pidfd, signal),
        None => crate::sys::pidfd_send_any_signal(std::os::fd::AsFd::as_fd(&pidfd), signal),
    };
    match sent {
        Err(Errno::SRCH) => return Err(Error::Refused("container not running".into())),
        sent => sent.doing(|| format!("sending signal {signal} to the container"))?,
    }
    if signal == libc::SIGKILL
        && let Some(path) = state.cgroup.clone()
    {
        let cgroup = Cgroup::open(path);
        if cgroup.frozen()? {
            cgroup.thaw()?; // a frozen process dies only when it thaws on v1
        }
    }
    Ok(())
}

/// Kills every process of the container.
pub fn end(state: &State) -> Result<(), Error> {
    if let Some(path) = state.cgroup.clone() {
        Cgroup::open(path).kill()?;
    }
    if let Some(pidfd) = state.pidfd() {
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).doing(|| "killing the container".into())?,
        }
    }
    Ok(())
}

/// A signal by number or by name, with or without SIG, in any case; real-time ones as `RTMIN+3`.
fn number(text: &str) -> Result<i32, Error> {
    let unknown = || Error::Usage(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { Ok(0) } else { offset.parse::<i32>() };
        return offset.ok().map(|offset| 34 + offset).filter(|number| (34..=64).contains(number)).ok_or_else(unknown);
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(unknown)
}

/// Source: signal(7).
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_may_be_written_in_any_way_that_callers_write_it() {
        for (text, expected) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigkill", 9), ("0", 0), ("SIGRTMIN+3", 37), ("64", 64)]
        {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in ["65", "-1", "NOPE", "", "SIGRTMIN+31"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
