//! `tare exec`: one more process in a running container.
//!
//! Source: runc-exec(8).

use std::path::PathBuf;

use super::create::{connect_to, preserved};
use super::flags::{Flag, Order, Parsed, parse, switch, value};
use super::foreground::{Foreground, Terminal};
use super::{Error, Global};
use crate::bundle::check_process;
use crate::cgroup::Below;
use crate::error::Doing as _;
use crate::handover::{send_pidfd, write_pid_file};
use crate::join::{Options, join};
use crate::plan::{Receiver, scheduling::processors};
use crate::spec;
use crate::state::{Id, SavedFilter, State, StateDir, Status};

const FLAGS: &[Flag] = &[
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["cwd"]),
    value(&["env", "e"]),
    switch(&["tty", "t"]),
    value(&["user", "u"]),
    value(&["additional-gids", "g"]),
    value(&["process", "p"]),
    switch(&["detach", "d"]),
    value(&["pid-file"]),
    value(&["process-label"]),
    value(&["apparmor"]),
    switch(&["no-new-privs"]),
    value(&["cap", "c"]),
    value(&["preserve-fds"]),
    value(&["cgroup"]),
    switch(&["ignore-paused"]),
];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::First)?;
    let Some((id, args)) = parsed.words.split_first() else {
        return Err(Error::Usage("\"exec\" requires a container's id".into()));
    };
    let entry = StateDir::look(&global.root, &Id::new(id)?);
    let state = entry.read()?;
    match state.status(&entry) {
        Status::Created | Status::Running => {}
        Status::Paused if parsed.is_set("ignore-paused") => {}
        Status::Paused => {
            return Err(Error::Refused("cannot exec in a paused container (use --ignore-paused to override)".into()));
        }
        Status::Stopped | Status::Creating => return Err(Error::Refused("cannot exec in a stopped container".into())),
    }
    let process = process(&parsed, &state, args)?;
    check_process(&process)?;
    enter(global, &parsed, &state, &process)
}

fn enter(global: &Global, parsed: &Parsed, state: &State, process: &spec::Process) -> Result<i32, Error> {
    let detach = parsed.is_set("detach");
    let socket = parsed.value("console-socket").filter(|path| !path.is_empty());
    let (terminal, ours) = match (process.terminal, socket) {
        (true, Some(path)) => (Some(Receiver { socket: connect_to(path.as_ref())?, ours: false }), None),
        (true, None) if detach => {
            return Err(Error::Usage("cannot allocate tty if runc will detach without setting console socket".into()));
        }
        (true, None) => {
            let (theirs, ours) = Terminal::pair()?;
            (Some(theirs), Some(ours))
        }
        (false, Some(_)) => {
            return Err(Error::Usage("cannot use console socket if runc will not detach or allocate tty".into()));
        }
        (false, None) => (None, None),
    };
    let foreground = if detach { None } else { Some(Foreground::begin()?) };
    let options = Options {
        terminal,
        filter: state.filter.as_ref().map(SavedFilter::program),
        preserved: preserved(parsed)?,
        below: parsed.values("cgroup").map(Below::read).collect::<Result<_, _>>()?,
        ..Options::default()
    };
    debug(global, state, "nsexec container setup: what the process will do is decided");
    if let Some(mask) = initial_processors(process)? {
        debug(global, state, &format!("nsexec: affinity: {mask:#x}"));
    }
    let mut joined = join(state, process, options, &mut |text| global.log.warn(&text))?;
    debug(global, state, &format!("child process in init(): it is {}, and has joined", joined.init.pid));
    if let Some(path) = parsed.value("pidfd-socket") {
        let socket = connect_to(path.as_ref())?;
        send_pidfd(std::os::fd::AsFd::as_fd(&socket), std::os::fd::AsFd::as_fd(&joined.init.pidfd), b"setns")?;
    }
    if let Some(file) = parsed.value("pid-file").filter(|path| !path.is_empty()) {
        write_pid_file(&PathBuf::from(file), joined.init.pid.as_raw_nonzero().get())?;
    }
    debug(global, state, "setns_init: about to exec");
    let own_output = foreground.is_some() && ours.is_none();
    joined.start().map_err(|error| if own_output { error } else { error.said_here() })?;
    joined.init.keep();
    foreground.map_or(Ok(0), |foreground| Ok(foreground.wait(&joined.init, ours, None)?))
}

/// With words of runc's that are looked for in its log.
fn debug(global: &Global, state: &State, what: &str) {
    global.log.debug(&format!("{}: {what}", state.id.as_str()));
}

/// The processors that it may join on, the first 64 of them as a mask.
fn initial_processors(process: &spec::Process) -> Result<Option<u64>, Error> {
    let Some(affinity) = &process.exec_cpu_affinity else { return Ok(None) };
    let mask = processors("initial", &affinity.initial)?;
    Ok(mask.and_then(|mask| mask.first().copied()))
}

/// The process to run: from a file as it is, else the container's own with what the flags change.
fn process(parsed: &Parsed, state: &State, args: &[String]) -> Result<spec::Process, Error> {
    if let Some(file) = parsed.value("process").filter(|path| !path.is_empty()) {
        let text = std::fs::read(file).doing(|| format!("reading the process from {file}"))?;
        let mut process: spec::Process = serde_json::from_slice(&text)
            .map_err(|error| Error::Usage(format!("reading the process from {file}: {error}")))?;
        process.terminal |= parsed.is_set("tty");
        return Ok(process);
    }
    let mut process = state.process.clone();
    if args.is_empty() {
        return Err(Error::Usage("process args cannot be empty".into()));
    }
    process.args = args.to_vec();
    process.terminal = parsed.is_set("tty");
    process.env.extend(parsed.values("env").map(str::to_owned));
    process.no_new_privileges |= parsed.is_set("no-new-privs");
    for (flag, label) in [("apparmor", &mut process.apparmor_profile), ("process-label", &mut process.selinux_label)] {
        if let Some(given) = parsed.value(flag) {
            given.clone_into(label);
        }
    }
    if let Some(cwd) = parsed.value("cwd") {
        cwd.clone_into(&mut process.cwd);
    }
    if let Some(user) = parsed.value("user") {
        (process.user.uid, process.user.gid) = user_and_group(user)?;
    }
    for gid in parsed.values("additional-gids") {
        process.user.additional_gids.push(id_number("--additional-gids", gid)?);
    }
    let more: Vec<String> = parsed.values("cap").map(str::to_owned).collect();
    if !more.is_empty() {
        let capabilities = process.capabilities.get_or_insert_default();
        let ambient = !capabilities.inheritable.is_empty();
        for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
            set.extend(more.iter().cloned());
        }
        if ambient {
            capabilities.inheritable.extend(more.iter().cloned());
            capabilities.ambient.extend(more);
        }
    }
    Ok(process)
}

/// `UID` or `UID:GID`, numbers only; anything else is refused and never becomes root (CVE-2026-30892).
fn user_and_group(text: &str) -> Result<(u32, u32), Error> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((id_number("--user", uid)?, id_number("--user", gid)?)),
        None => Ok((id_number("--user", text)?, 0)),
    }
}

fn id_number(flag: &str, text: &str) -> Result<u32, Error> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u32>().ok().filter(|number| digits && *number != u32::MAX);
    number.ok_or_else(|| Error::Usage(format!("{flag}: {text:?} is not a user or group id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_exactly_or_refused() {
        for (text, expected) in [("1", (1, 0)), ("1:2", (1, 2)), ("01", (1, 0)), ("0:0", (0, 0))] {
            assert_eq!(user_and_group(text).unwrap(), expected, "{text}");
        }
        for text in ["", ":2", "1:", "-1", "+1", "4294967296", "4294967295", "root", "1:2:3", " 1"] {
            assert!(user_and_group(text).is_err(), "{text}");
        }
    }
}
