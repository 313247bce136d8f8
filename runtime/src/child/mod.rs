//! The code between clone and exec. The parent thinks, the child walks: a flat list of steps over a [`Plan`], each one a
//! system call or a few, with no allocation, no lock and no choice that could have been made earlier.
//!
//! Parent and child talk over a socket that closes on exec. The child says where it is, or where it got stuck; the parent,
//! which has the plan, makes the sentence. End of file means that the program runs (or that the child was killed).

mod become_program;
mod between;
mod copy_up;
pub mod enter;
mod filesystem;
pub mod helper;
pub mod network;
mod report;
mod terminal;
pub mod user_namespace;

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::error::{Doing as _, Failed};
use crate::plan::{Gate, Plan, Processors, Scheduling};
use crate::sys::{self, Cloned};

pub use report::{Report, Step, Stuck, decode};
use report::{at, nth};

/// A child between clone and exec, as its parent sees it. Dropped before [`Init::keep`], it is killed and waited for.
#[derive(Debug)]
pub struct Init {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    socket: OwnedFd,
    kept: bool,
}

impl Init {
    /// One that we have not made ourselves and that runs already: it has nothing to say.
    ///
    /// # Errors
    /// It is gone, or out of descriptors.
    pub fn of_running(pid: Pid) -> Result<Init, Failed> {
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .doing(|| format!("opening a handle of process {}", pid.as_raw_nonzero()))?;
        let (socket, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .doing(|| "making a socket pair".into())?;
        Ok(Init { pid, pidfd, socket, kept: false })
    }

    /// The child's next report; none once it has become the program, or died.
    ///
    /// # Errors
    /// The socket broke.
    pub fn next(&self) -> Result<Option<Report>, Failed> {
        report::receive(self.socket.as_fd()).doing(|| "waiting for the container's first process".into())
    }

    /// Lets the child go on from where it waits, or will wait.
    ///
    /// # Errors
    /// The socket broke.
    pub fn go_on(&self) -> Result<(), Failed> {
        match rustix::net::send(&self.socket, &[0], rustix::net::SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE) => Ok(()), // one that got stuck before it waited has left word: see `next`
            Err(errno) => Err(errno).doing(|| "letting the container's first process go on".into()),
        }
    }

    /// Hands over a descriptor that the child waits for.
    ///
    /// # Errors
    /// The socket broke.
    pub fn give(&self, handle: BorrowedFd<'_>) -> Result<(), Failed> {
        match between::give_handle(self.socket.as_fd(), handle) {
            Ok(()) | Err(Errno::PIPE) => Ok(()), // as in `go_on`
            Err(errno) => Err(errno).doing(|| "handing a namespace to the container's first process".into()),
        }
    }

    /// From here on the child is nobody's to undo.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if !self.kept {
            // Both can only fail if it is gone already, which is what is wanted.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
        }
    }
}

/// Starts the child that walks `plan`.
///
/// # Errors
/// The kernel refused a namespace or the clone.
pub fn spawn(plan: &Plan, gate: &Gate, cgroup: Option<BorrowedFd<'_>>) -> Result<Init, Failed> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .doing(|| "making a socket pair".into())?;
    let back = enter::for_children(&plan.namespaces)?;
    let cloned = if plan.namespaces.new_in_joined_user_namespace() {
        between::clone(plan, gate, cgroup, theirs.as_fd())
    } else {
        sys::clone3(plan.namespaces.new, cgroup).doing(starting)
    };
    match cloned {
        Ok(Cloned::Child) => {
            drop(ours); // else this process would hold the parent's end open itself
            let Err(stuck) = walk(plan, gate, theirs.as_fd());
            report::stuck(theirs.as_fd(), stuck);
            sys::exit(1)
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            let init = Init { pid, pidfd, socket: ours, kept: false };
            back.restore()?;
            Ok(init)
        }
        Err(failed) => {
            back.restore()?;
            Err(failed)
        }
    }
}

fn starting() -> String {
    "starting the container's first process".into()
}

/// Runs between clone3 and execve. Only calls from signal-safety(7).
fn walk(plan: &Plan, gate: &Gate, socket: BorrowedFd<'_>) -> Result<Infallible, Stuck> {
    prepare(plan, socket)?;
    settle(plan, gate, socket)
}

/// With the runtime's own rights, as long as they last.
fn prepare(plan: &Plan, socket: BorrowedFd<'_>) -> Result<(), Stuck> {
    #[cfg(test)]
    crate::trap::arm();
    at(Step::Signals, sys::reset_signals())?;
    for (index, (kind, limit)) in (0u16..).zip(&plan.process.rlimits) {
        nth(Step::Limits, index, rustix::process::setrlimit(*kind, *limit))?; // first, with the runtime's own rights
    }
    for (index, tasks) in (0u16..).zip(&plan.cgroup_tasks) {
        nth(Step::Cgroup, index, enter::cgroup(tasks.as_fd()))?; // "0" is the writer itself: no wait for a grace period
    }
    schedule(&plan.process.scheduling)?; // where its cgroup lets it run, with the runtime's own rights
    if plan.namespaces.mapped_later {
        at(Step::Mappings, report::say_and_wait(socket, Step::Mappings))?;
        at(Step::Mappings, enter::mapped_root())?;
    }
    enter::namespaces(&plan.namespaces.joined)
}

/// In all its namespaces.
fn settle(plan: &Plan, gate: &Gate, socket: BorrowedFd<'_>) -> Result<Infallible, Stuck> {
    at(Step::Session, rustix::process::setsid().map(|_| ()))?;
    if plan.namespaces.new_cgroup {
        at(Step::CgroupNamespace, enter::new_cgroup_namespace())?; // after the cgroups were joined: it is rooted there
    }
    if let Some(name) = &plan.hostname {
        at(Step::Hostname, rustix::system::sethostname(name.to_bytes()))?;
    }
    if let Some(name) = &plan.domainname {
        at(Step::Domainname, rustix::system::setdomainname(name.to_bytes()))?;
    }
    if plan.namespaces.new & libc::CLONE_NEWNET as u64 != 0 {
        at(Step::Loopback, sys::loopback_up())?;
    }
    let mut terminal = None;
    if let Some(files) = &plan.filesystem {
        filesystem::attach_root(files)?;
        filesystem::mount(files, 0..files.before_network)?;
        network::enter_made_aside(&plan.namespaces, socket)?; // as late as can be: it may still be in the making
        filesystem::mount(files, files.before_network..files.mounts.len())?;
        filesystem::make_devices(files)?;
        if let Some(asked) = &plan.terminal {
            terminal = Some(terminal::open(asked, Some(files.root.as_fd()), plan.process.uid)?);
        }
        if plan.hooks_wait {
            at(Step::Hooks, report::say_and_wait(socket, Step::Hooks))?; // before pivot_root: runtime-spec, "CreateRuntime Hooks"
        }
        filesystem::finish_mounts(files)?;
        filesystem::protect(files)?; // after the hooks, which may still add mounts
        filesystem::change_root(files)?;
        filesystem::make_working_folder(files, &plan.process.cwd); // before the root may become read-only
    } else {
        network::enter_made_aside(&plan.namespaces, socket)?;
        if let Some(asked) = &plan.terminal {
            terminal = Some(terminal::open(asked, None, plan.process.uid)?);
        }
        if plan.hooks_wait {
            at(Step::Hooks, report::say_and_wait(socket, Step::Hooks))?;
        }
        if let Some(root) = &plan.chroot {
            at(Step::PivotRoot, filesystem::chroot(root))?;
        }
    }
    if !plan.sysctl.is_empty() {
        enter::write_sysctls(&plan.sysctl)?;
    }
    if let Some(files) = &plan.filesystem
        && files.readonly
    {
        at(Step::ReadonlyRoot, filesystem::make_root_readonly(files))?;
    }
    if let Some(terminal) = terminal {
        at(Step::Terminal, terminal.take_over())?;
    }
    become_program::become_program(&plan.process, gate, socket)
}

fn schedule(scheduling: &Scheduling) -> Result<(), Stuck> {
    match &scheduling.processors {
        Processors::Only(mask) => at(Step::Affinity, sys::sched_setaffinity(mask))?,
        Processors::All => {
            let _ = sys::sched_setaffinity(&[u64::MAX; 16]); // one that may not be changed stays as it is
        }
    }
    if let Some(attributes) = &scheduling.attributes {
        at(Step::Scheduler, sys::sched_setattr(attributes))?;
    }
    if let Some(priority) = scheduling.io_priority {
        at(Step::IoPriority, sys::ioprio_set(priority))?;
    }
    if let Some((mode, nodes)) = &scheduling.memory_policy {
        at(Step::MemoryPolicy, sys::set_mempolicy(*mode, nodes))?;
    }
    Ok(())
}

/// Joins a running container's namespaces and becomes one more of its processes: `tare exec`.
///
/// # Errors
/// The kernel refused the clone.
pub fn spawn_beside(plan: &Plan, gate: &Gate, cgroup: Option<BorrowedFd<'_>>) -> Result<Init, Failed> {
    // Nobody inside may look at this process while it still has the host's files open (CVE-2016-9962); execve ends it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "hiding from the container".into())?;
    spawn(plan, gate, cgroup)
}
