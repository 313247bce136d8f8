//! `tare start`: lets the program of a created container run.
//!
//! Source: runtime-spec runtime.md, "Start"; runc-start(8).

use super::flags::{Order, parse};
use super::{Error, Global, only_id};
use crate::child::{Report, decode};
use crate::hooks::{self, When};
use crate::notify::{self, Manager, Relay};
use crate::sentence::last_steps;
use crate::state::{StateDir, Status};

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let id = only_id("start", &parse(words, &[], Order::Anywhere)?.words)?;
    let entry = StateDir::open(&global.root, &id)?;
    let state = entry.read()?;
    match state.status(&entry) {
        Status::Created => {}
        Status::Stopped => return Err(Error::Refused("cannot start a container that has stopped".into())),
        Status::Running | Status::Paused => {
            return Err(Error::Refused("cannot start an already running container".into()));
        }
        Status::Creating => return Err(Error::Refused("cannot start a container that is still being created".into())),
    }
    let manager = Manager::from_environment().filter(|_| notify::is_prepared(entry.path()));
    let relay = manager.map(|manager| Relay::begin(&manager, entry.path())).transpose()?;
    let process = state.pidfd();
    if let Err(error) = hooks::run(When::StartContainer, &state) {
        super::kill::end(&state)?; // as below
        return Err(error.into());
    }
    let said = entry.open_gate()?;
    if let Some(record) = said.first_chunk::<8>()
        && let Some(Report::Stuck(stuck)) = decode(*record)
    {
        return Err(Error::Start(last_steps(stuck, &state.process.args[0])));
    }
    if let Err(error) = hooks::run(When::Poststart, &state) {
        super::kill::end(&state)?; // a container whose poststart hook fails does not go on: runtime-spec, "Lifecycle"
        return Err(error.into());
    }
    drop(entry); // others may want to do something with the container before it is ready
    if let (Some(relay), Some(process)) = (relay, process) {
        relay.wait(state.pid, &process)?;
    }
    Ok(0)
}
