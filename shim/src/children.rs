//! The processes that end as our children: the runtime's commands, loggers, and, since we are a subreaper, every process
//! of a container whose parent has ended.
//!
//! A process is known by its pidfd from the moment its number is learnt, and is not reaped before: its number cannot come
//! to mean another one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, waitid, waitpid};

use crate::phase::Exit;
use crate::{reactor, sys};

#[derive(Default)]
pub struct Children {
    known: RefCell<BTreeSet<i32>>,
    /// Commands of the runtime whose container process is not known yet: no stranger is reaped meanwhile.
    held: Cell<usize>,
}

/// A process whose end is waited for.
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    children: Rc<Children>,
}

/// While it is there, processes that are not known are not reaped.
pub struct Hold(Rc<Children>);

impl Children {
    /// Takes charge of a child, running or ended. Whoever does must wait for its end.
    ///
    /// # Errors
    /// It is not there.
    pub fn adopt(self: &Rc<Children>, pid: Pid) -> Result<Child, Errno> {
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        self.known.borrow_mut().insert(pid.as_raw_nonzero().get());
        Ok(Child { pid, pidfd, children: self.clone() })
    }

    pub fn hold(self: &Rc<Children>) -> Hold {
        self.held.set(self.held.get() + 1);
        Hold(self.clone())
    }

    /// Reaps those that nobody waits for.
    pub fn reap_strangers(&self) {
        while self.held.get() == 0
            && let Some(pid) = sys::ended_child()
        {
            // Whoever waits for a known one reaps it, and calls us again.
            if self.known.borrow().contains(&pid.as_raw_nonzero().get())
                || waitpid(Some(pid), WaitOptions::NOHANG).is_err()
            {
                return;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
        self.0.reap_strangers();
    }
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends it a signal; it cannot reach another process.
    ///
    /// # Errors
    /// `ESRCH` it has ended · `EINVAL` there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        sys::send_signal(self.pidfd.as_fd(), signal)
    }

    /// Waits for its end, and reaps it.
    pub async fn exit(&self) -> Exit {
        let status = loop {
            if reactor::readable(&self.pidfd).await.is_err() {
                break UNKNOWN;
            }
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => {
                    let signal = status.terminating_signal().map(|signal| 128 + signal);
                    break status.exit_status().or(signal).map_or(UNKNOWN, i32::unsigned_abs);
                }
                Ok(None) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => break UNKNOWN, // not our child: the runtime's commands were not ours to adopt from
            }
        };
        let exit = Exit { status, at: SystemTime::now() };
        self.children.known.borrow_mut().remove(&self.pid.as_raw_nonzero().get());
        self.children.reap_strangers();
        exit
    }
}

/// What containerd reports when an exit code cannot be learnt.
const UNKNOWN: u32 = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[allow(clippy::zombie_processes)] // `Child::exit` reaps it
    fn exit_of(script: &'static str, kill: Option<i32>) -> u32 {
        let exit = reactor::run(async move {
            let children = Rc::new(Children::default());
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let child = children.adopt(Pid::from_child(&child)).unwrap();
            if let Some(signal) = kill {
                child.signal(signal).unwrap();
            }
            child.exit().await
        });
        exit.unwrap().status
    }

    #[test]
    fn codes_and_signals_are_told_apart() {
        assert_eq!(exit_of("exit 3", None), 3);
        assert_eq!(exit_of("exit 0", None), 0);
        assert_eq!(exit_of("exec sleep 1000", Some(9)), 137);
    }
}
