//! A process that does nothing but be in a cgroup.

use rustix::event::poll;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};

use crate::error::{Doing as _, Failed};
use crate::sys::{self, Cloned};

/// Killed when dropped, and by the kernel should we be.
pub struct Holder {
    pid: Pid,
}

impl Holder {
    pub fn start() -> Result<Holder, Failed> {
        match sys::clone3(0, None).doing(|| "starting a process to hold the unit".into())? {
            Cloned::Parent { pid, .. } => Ok(Holder { pid }),
            Cloned::Child => {
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                loop {
                    let _ = poll(&mut [], None);
                }
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It is our child, so its pid is its own until we have waited for it.
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}
