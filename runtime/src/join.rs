//! One more process in a container: `exec`, and hooks that run inside.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;

use crate::cgroup::{self, Below, Cgroup, Join};
use crate::child::{self, Init, Report, Step, Stuck};
use crate::cli::Error;
use crate::container::terminal_of;
use crate::error::{Doing as _, Failed};
use crate::handover::seccomp_listener;
use crate::plan::{self, Gate, Namespaces, Plan, Preserved, Processors, Receiver, scheduling};
use crate::sentence::last_steps_of;
use crate::state::State;
use crate::{rootless, seccomp, spec, sys};

/// What a joining process gets beside its specification.
#[derive(Default)]
pub struct Options {
    pub terminal: Option<Receiver>,
    pub filter: Option<seccomp::Program>,
    pub preserved: Preserved,
    pub stdio: Option<(OwnedFd, OwnedFd)>,
    pub keyring: Option<std::ffi::CString>,
    /// Cgroups below the container's own to be in.
    pub below: Vec<Below>,
}

/// A process that has joined and waits at its gate.
pub struct Joined {
    pub init: Init,
    program: String,
    cwd: String,
}

impl Joined {
    /// Lets it become its program, and returns when it has.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn start(&self) -> Result<(), Error> {
        self.init.go_on()?;
        match self.init.next()? {
            None => Ok(()),
            Some(Report::Stuck(stuck)) => Err(self.stuck(stuck)),
            Some(Report::Waits(step, _)) => Err(Error::Start(format!("waiting at {step:?}: not expected"))),
        }
    }

    fn stuck(&self, stuck: Stuck) -> Error {
        Error::at_the_end(stuck, last_steps_of(stuck, &self.program, &self.cwd))
    }
}

/// Joins all namespaces and cgroups of a running container.
///
/// # Errors
/// The container is gone, or something about the process cannot be done.
pub fn join(
    state: &State,
    process: &spec::Process,
    options: Options,
    warn: &mut dyn FnMut(String),
) -> Result<Joined, Error> {
    join_as(state, process, &process.args[0], options, warn)
}

/// The same, with a program that is not the first argument.
///
/// # Errors
/// As [`join`].
pub fn join_as(
    state: &State,
    process: &spec::Process,
    program: &str,
    options: Options,
    warn: &mut dyn FnMut(String),
) -> Result<Joined, Error> {
    let pidfd = state.pidfd().ok_or_else(|| Error::Refused("container not running".into()))?;
    if rootless::unprivileged() && state.namespaces & libc::CLONE_NEWUSER as u64 != 0 {
        rootless::join(pidfd.as_fd())?;
    }
    let root_path = format!("/proc/{}/root", state.pid);
    let root = rustix::fs::openat(
        rustix::fs::CWD,
        &root_path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .doing(|| format!("opening {root_path}"))?;
    let mut planned = plan::process(process, options.filter, std::os::fd::AsFd::as_fd(&root), options.preserved, warn)?;
    if program != process.args[0] {
        planned.candidates = vec![plan::c_string("path", program)?];
    }
    planned.stdio = options.stdio;
    planned.keyring = options.keyring;
    planned.personality = state.personality;
    let affinity = process.exec_cpu_affinity.clone().unwrap_or_default();
    if let Some(last) = scheduling::processors("final", &affinity.last)? {
        planned.scheduling.processors = Processors::Only(last);
    }
    if let Some(first) = scheduling::processors("initial", &affinity.initial)? {
        // Until it is in its cgroup it runs where this process does.
        sys::sched_setaffinity(&first).doing(|| "setting process.execCPUAffinity.initial".into())?;
    }
    let mut plan = Plan {
        namespaces: namespaces(state, pidfd)?,
        cgroup_tasks: Vec::new(),
        hostname: None,
        domainname: None,
        filesystem: None,
        chroot: None,
        sysctl: Vec::new(),
        terminal: options.terminal.map(|receiver| terminal_of(process, receiver, false)),
        hooks_wait: false,
        process: planned,
    };
    let init = spawn(&mut plan, state, &options.below)?;
    let joined = Joined { init, program: program.to_owned(), cwd: process.cwd.clone() };
    crate::container::score(&joined.init, process)?;
    loop {
        match joined.init.next()? {
            Some(Report::Waits(Step::Gate, _)) => return Ok(joined),
            Some(Report::Waits(Step::SeccompListener, number)) => {
                seccomp_listener(&joined.init, plan.process.filter.as_ref(), number, state, "running")?;
                joined.init.go_on()?;
            }
            Some(Report::Stuck(stuck)) => return Err(joined.stuck(stuck)),
            Some(Report::Waits(step, _)) => return Err(Error::Start(format!("waiting at {step:?}: not expected"))),
            None => return Err(Error::Start("the process ended before its program ran (killed)".into())),
        }
    }
}

fn namespaces(state: &State, pidfd: OwnedFd) -> Result<Namespaces, Failed> {
    let pid = libc::CLONE_NEWPID as u64;
    Ok(Namespaces {
        pid: if state.namespaces & pid != 0 { Some(dup(&pidfd)?) } else { None },
        joined: match state.namespaces & !pid & !rootless::entered() {
            0 => Vec::new(),
            kinds => vec![(pidfd, kinds)],
        },
        ..Namespaces::default()
    })
}

/// Starts it in the container's cgroup. On version 2 that may have become one that holds no processes of its own any more:
/// then it goes where the first process is, unless somebody asked for a place by name.
fn spawn(plan: &mut Plan, state: &State, below: &[Below]) -> Result<Init, Error> {
    let Some(path) = &state.cgroup else { return Ok(child::spawn_beside(plan, &Gate::Parent, None)?) };
    let mut start = |join: Join| {
        plan.cgroup_tasks = join.tasks;
        child::spawn_beside(plan, &Gate::Parent, join.into.as_ref().map(std::os::fd::AsFd::as_fd))
    };
    match start(cgroup::below(path, below)?) {
        Err(failed) if failed.errno == Errno::BUSY && below.is_empty() => {
            Ok(start(Cgroup::open(path.clone()).join_beside(state.pid)?)?)
        }
        Err(failed) if failed.errno == Errno::BUSY => Err(Error::Refused(format!(
            "error adding pid of the new process to cgroups: {}/cgroup.procs: device or resource busy",
            Cgroup::open(path.clone()).lead().display()
        ))),
        answer => Ok(answer?),
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Failed> {
    fd.try_clone().doing(|| "copying a process handle".into())
}
