//! `tare pause` and `tare resume`: all processes of a container stop, and go on.
//!
//! Source: runc-pause(8), runc-resume(8).

use super::flags::{Order, parse};
use super::{Error, Global, only_id};
use crate::cgroup::Cgroup;
use crate::state::{StateDir, Status};

pub fn pause(global: &Global, words: &[String]) -> Result<i32, Error> {
    let (cgroup, status) = find(global, "pause", words)?;
    match status {
        Status::Running | Status::Created => cgroup.freeze()?,
        _ => return Err(Error::Refused("container not running".into())),
    }
    Ok(0)
}

pub fn resume(global: &Global, words: &[String]) -> Result<i32, Error> {
    let (cgroup, _) = find(global, "resume", words)?;
    if !cgroup.frozen()? {
        return Err(Error::Refused("container not paused".into()));
    }
    cgroup.thaw()?;
    Ok(0)
}

fn find(global: &Global, command: &str, words: &[String]) -> Result<(Cgroup, Status), Error> {
    let id = only_id(command, &parse(words, &[], Order::Anywhere)?.words)?;
    let entry = StateDir::open(&global.root, &id)?;
    let state = entry.read()?;
    let status = state.status(&entry);
    let Some(path) = state.cgroup else {
        return Err(Error::Refused(format!("cannot {command} a container without cgroups")));
    };
    Ok((Cgroup::open(path), status))
}
