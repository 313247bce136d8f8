//! `tare delete`: removes what a container holds. With `--force` it undoes any prefix of `create`, whatever is left of it.
//!
//! Source: runtime-spec runtime.md, "Delete"; runc-delete(8).

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::flags::{Flag, Order, parse, switch};
use super::{Error, Global, only_id};
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::Doing as _;
use crate::hooks;
use crate::state::{self, Id, State, StateDir, Status};

const FLAGS: &[Flag] = &[switch(&["force", "f"])];

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let id = only_id("delete", &parsed.words)?;
    remove(global, &id, parsed.is_set("force"))?;
    Ok(0)
}

pub fn remove(global: &Global, id: &Id, force: bool) -> Result<(), Error> {
    let entry = match StateDir::open(&global.root, id) {
        Err(state::Error::NotFound) if force => return Ok(()),
        entry => entry?,
    };
    let state = match entry.read() {
        Ok(state) => state,
        Err(error) if !force => return Err(error.into()),
        Err(_) => return remove_wreck(id, entry),
    };
    match state.status(&entry) {
        Status::Stopped | Status::Creating => {}
        Status::Created => super::kill::end(&state)?,
        Status::Running | Status::Paused if force => super::kill::end(&state)?,
        status => {
            let (id, status) = (id.as_str(), status.as_str());
            return Err(Error::Refused(format!("cannot delete container {id} that is not stopped: {status}")));
        }
    }
    wait_for_end(&state)?;
    remove_parts(global, entry, &state)
}

/// Removes a container that this command made, and whose end it has seen.
pub fn remove_ended(global: &Global, state: &State) -> Result<(), Error> {
    match StateDir::open(&global.root, &state.id) {
        Ok(entry) if entry.is_of(state) => remove_parts(global, entry, state),
        Ok(_) | Err(state::Error::NotFound) => Ok(()), // somebody else was faster
        Err(error) => Err(error.into()),
    }
}

/// Removes a container that was dumped: CRIU has killed its processes.
pub fn remove_dumped(global: &Global, entry: StateDir, state: &State) -> Result<(), Error> {
    wait_for_end(state)?;
    remove_parts(global, entry, state)
}

fn remove_parts(global: &Global, entry: StateDir, state: &State) -> Result<(), Error> {
    if let Some(path) = &state.cgroup {
        Cgroup::open(path.clone()).clear()?;
    }
    if let Some(unit) = &state.unit
        && let Err(error) = unit.stop()
    {
        // Its cgroup is gone, with all that ran in it: systemd finds out by itself.
        global.log.warn(&error.to_string());
    }
    entry.remove()?;
    hooks::run_all_after_end(state, &mut |text| global.log.warn(&text));
    Ok(())
}

/// A state file that was cut short says nothing; but the cgroups of a container without a path of its own have its name.
fn remove_wreck(id: &Id, entry: StateDir) -> Result<(), Error> {
    if let Ok(path) = CgroupPath::resolve(None, id.as_str()) {
        Cgroup::open(path).clear()?;
    }
    Ok(entry.remove()?)
}

fn wait_for_end(state: &State) -> Result<(), Error> {
    let Some(pidfd) = state.pidfd() else { return Ok(()) };
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience))
        .doing(|| "waiting for the container to end".into())?;
    if ended == 0 {
        return Err(Error::Refused(format!(
            "container {} was killed and is still there after {PATIENCE:?}",
            state.id.as_str()
        )));
    }
    Ok(())
}
