//! `tare run`: create, start, and in the foreground wait and clean up.
//!
//! Source: runc-run(8).

use super::create::{Asked, FLAGS, console};
use super::flags::{Order, parse};
use super::foreground::{Foreground, Terminal};
use super::{Error, Global};
use crate::bundle::Bundle;
use crate::container::{Container, Start};
use crate::error::Doing as _;
use crate::hooks::{self, When};

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let asked = Asked::read("run", &parsed)?;
    let detach = parsed.is_set("detach");
    let bundle = Bundle::open(&asked.bundle)?; // every refusal is made here, by field name
    if !detach && !parsed.is_set("no-subreaper") {
        // What the container leaves behind comes to us and not to whoever started us.
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .doing(|| "becoming a subreaper".into())?;
    }
    let given = console(&bundle, asked.console_socket.as_deref(), detach)?;
    let (terminal, ours) = match given {
        None if bundle.process().terminal => {
            let (theirs, ours) = Terminal::pair()?;
            (Some(theirs), Some(ours))
        }
        given => (given, None),
    };
    let foreground = if detach { None } else { Some(Foreground::begin()?) }; // before there is a child to forward to
    // Whoever reads the pid file may want to do so before the program runs.
    let start = if asked.pid_file.is_some() { Start::Now } else { Start::AtOnce };
    let container = Container::create(global, &asked.id, bundle, asked.options(terminal)?, start)?;
    container.write_pid(asked.pid_file.as_deref())?;
    if let Err(error) = container.start() {
        let error = match (error, &foreground) {
            (Error::Exec(sentence), Some(foreground)) => {
                if ours.is_some() {
                    foreground.wait(&container.init, ours, None)?; // it has said so on its terminal
                }
                Error::Exec(sentence)
            }
            (error, _) => error.said_here(),
        };
        container.fail(global);
        return Err(error);
    }
    let kept = container.keep();
    if let Err(error) = hooks::run(When::Poststart, &kept.state) {
        super::delete::remove(global, &asked.id, true)?;
        return Err(error.into());
    }
    let Some(foreground) = foreground else {
        if let Some(relay) = kept.relay {
            relay.wait(kept.state.pid, &kept.init.pidfd)?;
        }
        return Ok(0);
    };
    let code = foreground.wait(&kept.init, ours, kept.relay)?;
    if !parsed.is_set("keep") {
        super::delete::remove_ended(global, &kept.state)?;
    }
    Ok(code)
}
