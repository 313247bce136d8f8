//! One more process in a container: `exec`, and hooks that run inside.

use std::os::fd::OwnedFd;

use crate::child::{self, Init, Report, Step, Stuck};
use crate::cli::Error;
use crate::container::{join_again, terminal_of};
use crate::error::{Doing as _, Failed};
use crate::plan::{self, Gate, Namespaces, Plan, Preserved};
use crate::sentence::last_steps_of;
use crate::state::State;
use crate::{seccomp, spec};

/// What a joining process gets beside its specification.
#[derive(Default)]
pub struct Options {
    pub terminal: Option<OwnedFd>,
    pub filter: Option<seccomp::Program>,
    pub preserved: Preserved,
    pub stdio: Option<(OwnedFd, OwnedFd)>,
    pub keyring: Option<std::ffi::CString>,
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
        Error::Start(last_steps_of(stuck, &self.program, &self.cwd))
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
    let pid = libc::CLONE_NEWPID as u64;
    let in_pid_namespace = state.namespaces & pid != 0;
    let join = join_again(state)?;
    let plan = Plan {
        namespaces: Namespaces {
            pid: if in_pid_namespace { Some(dup(&pidfd)?) } else { None },
            joined: match state.namespaces & !pid {
                0 => Vec::new(),
                kinds => vec![(pidfd, kinds)],
            },
            ..Namespaces::default()
        },
        cgroup_tasks: join.tasks,
        hostname: None,
        domainname: None,
        filesystem: None,
        sysctl: Vec::new(),
        terminal: options.terminal.map(|socket| terminal_of(process, socket, false)),
        hooks_wait: false,
        process: planned,
    };
    let init = child::spawn_beside(&plan, &Gate::Parent, join.into.as_ref().map(std::os::fd::AsFd::as_fd))?;
    let joined = Joined { init, program: program.to_owned(), cwd: process.cwd.clone() };
    crate::container::score(&joined.init, process)?;
    match joined.init.next()? {
        Some(Report::Waits(Step::Gate, _)) => Ok(joined),
        Some(Report::Stuck(stuck)) => Err(joined.stuck(stuck)),
        Some(Report::Waits(step, _)) => Err(Error::Start(format!("waiting at {step:?}: not expected"))),
        None => Err(Error::Start("the process ended before its program ran (killed)".into())),
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Failed> {
    fd.try_clone().doing(|| "copying a process handle".into())
}
