//! Hooks: programs that run at points of a container's life, with its state on standard input.
//!
//! | when | by | in | as |
//! |---|---|---|---|
//! | prestart, createRuntime | create | the runtime's namespaces, before the root is changed | the runtime |
//! | createContainer | create | the container's namespaces, before the root is changed | root |
//! | startContainer | start | the container, before its program | the container's user |
//! | poststart | start | the runtime's namespaces | the runtime |
//! | poststop | delete | the runtime's namespaces | the runtime |
//!
//! A hook that runs inside gets no more than the container's own process: its file may come from the image.
//!
//! Source: runtime-spec config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle".

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use serde_json::{Value, json};

use crate::error::{Doing as _, Failed};
use crate::join;
use crate::spec::{Hook, Spec};
use crate::state::State;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("error running {when} hook #{index}: {path}: {why}{output}")]
    Hook { when: &'static str, index: usize, path: String, why: String, output: String },
    #[error(transparent)]
    Failed(#[from] Failed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            When::Prestart => "prestart",
            When::CreateRuntime => "createRuntime",
            When::CreateContainer => "createContainer",
            When::StartContainer => "startContainer",
            When::Poststart => "poststart",
            When::Poststop => "poststop",
        }
    }

    fn of(self, state: &State) -> &[Hook] {
        match self {
            When::Prestart => &state.hooks.prestart,
            When::CreateRuntime => &state.hooks.create_runtime,
            When::CreateContainer => &state.hooks.create_container,
            When::StartContainer => &state.hooks.start_container,
            When::Poststart => &state.hooks.poststart,
            When::Poststop => &state.hooks.poststop,
        }
    }

    /// The container's status while it runs.
    fn status(self) -> &'static str {
        match self {
            When::Prestart | When::CreateRuntime | When::CreateContainer => "creating",
            When::StartContainer => "created",
            When::Poststart => "running",
            When::Poststop => "stopped",
        }
    }
}

/// Whether the child has to wait for hooks before its root is changed.
pub fn any_before_start(spec: &Spec) -> bool {
    spec.hooks.as_ref().is_some_and(|hooks| {
        !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() || !hooks.create_container.is_empty()
    })
}

/// The state as hooks and others are told it. Source: runtime-spec runtime.md, "State".
pub fn told(state: &State, status: &str) -> Value {
    let mut told = json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "status": status,
        "pid": if status == "stopped" { 0 } else { state.pid },
        "bundle": state.bundle,
    });
    if !state.annotations.is_empty() {
        told["annotations"] = json!(state.annotations);
    }
    told
}

/// Runs the hooks of one point, in order; the first that fails ends it.
///
/// # Errors
/// A hook cannot be run, does not end with 0, or takes longer than it may.
pub fn run(when: When, state: &State) -> Result<(), Error> {
    for (index, hook) in when.of(state).iter().enumerate() {
        let output = memory("hook-output")?;
        let failed = |why: String| Error::Hook {
            when: when.name(),
            index,
            path: hook.path.clone(),
            why,
            output: said(&output).unwrap_or_default(),
        };
        let input = state_as_input(state, when)?;
        let (pid, pidfd) = match when {
            When::CreateContainer | When::StartContainer => start_inside(when, hook, state, input, &output),
            _ => start_outside(hook, state, input, &output),
        }
        .map_err(&failed)?;
        wait(pid, &pidfd, hook.timeout).map_err(&failed)?;
    }
    Ok(())
}

/// Runs the hooks after the end: one that fails is warned about, and the next one runs.
///
/// Source: runtime-spec runtime.md, "Lifecycle", step 13.
pub fn run_all_after_end(state: &State, warn: &mut dyn FnMut(String)) {
    for hook in &state.hooks.poststop {
        let mut one = state.clone();
        one.hooks.poststop = vec![hook.clone()];
        if let Err(error) = run(When::Poststop, &one) {
            warn(error.to_string());
        }
    }
}

fn state_as_input(state: &State, when: When) -> Result<OwnedFd, Failed> {
    let mut told = told(state, when.status());
    if matches!(when, When::CreateContainer | When::StartContainer) && state.own_pid_namespace {
        told["pid"] = 1.into(); // as it is seen inside
    }
    let mut file = memory("hook-state")?;
    file.write_all(told.to_string().as_bytes())
        .and_then(|()| file.rewind())
        .doing(|| "writing the state for a hook".into())?;
    Ok(file.into())
}

fn start_outside(hook: &Hook, state: &State, input: OwnedFd, output: &File) -> Result<(Pid, OwnedFd), String> {
    let copy = || output.try_clone().map_err(|error| error.to_string());
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().current_dir(&state.bundle).stdin(Stdio::from(input)).stdout(copy()?).stderr(copy()?);
    for variable in &hook.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let child = command.spawn().map_err(|error| {
        rustix::io::Errno::from_io_error(&error).map_or_else(|| error.to_string(), crate::error::words)
    })?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(crate::error::words)?;
    Ok((pid, pidfd))
}

fn start_inside(
    when: When,
    hook: &Hook,
    state: &State,
    input: OwnedFd,
    output: &File,
) -> Result<(Pid, OwnedFd), String> {
    let mut process = state.process.clone();
    process.args = if hook.args.is_empty() { vec![hook.path.clone()] } else { hook.args.clone() };
    // A hook that the container's own process would run sees that one's environment, unless it has one of its own.
    if when == When::CreateContainer || !hook.env.is_empty() {
        process.env.clone_from(&hook.env);
    }
    process.terminal = false;
    process.rlimits.clear();
    process.oom_score_adj = None;
    process.scheduler = None;
    process.io_priority = None;
    process.exec_cpu_affinity = None;
    let mut filter = state.filter.as_ref().map(crate::state::SavedFilter::program);
    if when == When::CreateContainer {
        // The host's files are still there, and the hook is the host's: it gets the runtime's rights.
        process.cwd = state.rootfs.to_string_lossy().into_owned();
        process.apparmor_profile.clear();
        process.selinux_label.clear();
        process.capabilities = None;
        process.user = crate::spec::User::default();
        process.no_new_privileges = false;
        filter = None;
    } else {
        process.cwd = "/".into();
    }
    let output = output.try_clone().map_err(|error| error.to_string())?;
    let options = join::Options { filter, stdio: Some((input, output.into())), ..join::Options::default() };
    let mut joined =
        join::join_as(state, &process, &hook.path, options, &mut |_| {}).map_err(|error| error.to_string())?;
    joined.start().map_err(|error| error.to_string())?;
    joined.init.keep();
    let pidfd = joined.init.pidfd.try_clone().map_err(|error| error.to_string())?;
    Ok((joined.init.pid, pidfd))
}

/// Waits for the end, for so many seconds if there is a limit; then the hook is killed.
fn wait(pid: Pid, pidfd: &OwnedFd, timeout: Option<i64>) -> Result<(), String> {
    let end = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds.unsigned_abs()));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => {
                // It may have ended this very moment, and then there is nothing to kill.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                return Err(format!("killed after {} s", timeout.unwrap_or_default()));
            }
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(crate::error::words(errno)),
        }
    }
    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).map_err(crate::error::words)?;
    let ended = ended.ok_or("it ended unseen")?;
    match (ended.exit_status(), ended.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("exit status {code}")),
        (None, signal) => Err(format!("signal: {}", signal_words(signal.unwrap_or_default()))),
    }
}

/// A signal that ends a process, as those who read errors know it from Go's programs.
fn signal_words(signal: i32) -> String {
    let words = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        other => return other.to_string(),
    };
    words.into()
}

fn memory(name: &str) -> Result<File, Failed> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC).doing(|| format!("making a file in memory for {name}"))?.into())
}

/// What a hook has printed, at most the first KiB of it.
fn said(output: &File) -> Option<String> {
    let mut text = Vec::new();
    let mut file = output.try_clone().ok()?;
    file.rewind().ok()?;
    file.take(1024).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    (!text.is_empty()).then(|| format!(", it said: {text}"))
}
