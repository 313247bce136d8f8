//! The life of one process, as a table: what an event makes of it, and what the daemon is told.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use crate::connection::Reply;
use crate::stdio::Stdio;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// An exec that was added: there is no process yet. Or an init whose `create` is under way.
    Added,
    Created,
    Starting,
    Running,
    /// It ended before `start` had answered.
    Early(Exit),
    Stopped(Exit),
}

/// What a process ended with, 128 + n for signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub status: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    StartCalled,
    Started,
    StartFailed,
    Exited(Exit),
}

/// What the daemon is told, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    Start,
    Exit(Exit),
}

/// An event that cannot happen in that phase: a second start, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Phase {
    /// What one event makes of one process, and what the daemon is told of it, in this order.
    pub fn on(self, event: Event) -> Result<(Phase, Vec<Tell>), Refused> {
        Ok(match (self, event) {
            (Phase::Added | Phase::Created, Event::StartCalled) => (Phase::Starting, vec![]),
            (Phase::Starting, Event::Started) => (Phase::Running, vec![Tell::Start]),
            (Phase::Starting, Event::StartFailed) => (Phase::Created, vec![]),
            (Phase::Starting, Event::Exited(exit)) => (Phase::Early(exit), vec![]), // the exit overtook the answer
            (Phase::Early(exit), Event::Started) => (Phase::Stopped(exit), vec![Tell::Start, Tell::Exit(exit)]),
            (Phase::Early(exit), Event::StartFailed) => (Phase::Stopped(exit), vec![Tell::Exit(exit)]),
            (Phase::Created | Phase::Running, Event::Exited(exit)) => (Phase::Stopped(exit), vec![Tell::Exit(exit)]),
            _ => return Err(Refused),
        })
    }

    pub fn exit(self) -> Option<Exit> {
        match self {
            Phase::Early(exit) | Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A process of a task: its first one, or an exec.
pub struct Process {
    pub phase: Phase,
    /// 0 until there is one.
    pub pid: u32,
    pub pidfd: Option<OwnedFd>,
    pub stdio: Stdio,
    /// Who waits for the end.
    pub waiters: Vec<Reply>,
    /// For an exec: its specification, until it is started.
    pub spec: Vec<u8>,
    pub paused: bool,
    /// The terminal's master side, to resize it.
    pub master: Option<OwnedFd>,
}

impl Process {
    pub fn new(stdio: Stdio, spec: Vec<u8>) -> Process {
        Process {
            phase: Phase::Added,
            pid: 0,
            pidfd: None,
            stdio,
            waiters: Vec::new(),
            spec,
            paused: false,
            master: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };

    /// However the events fall, the daemon hears start before exit, and each at most once.
    #[test]
    fn no_order_of_events_makes_the_shim_lie() {
        let events = [Event::StartCalled, Event::Started, Event::StartFailed, Event::Exited(EXIT), Event::Exited(EXIT)];
        let mut orders = vec![Vec::new()];
        for _ in 0..events.len() {
            orders =
                orders.iter().flat_map(|order| events.iter().map(|event| [&order[..], &[*event]].concat())).collect();
        }
        for order in orders {
            let (mut phase, mut told) = (Phase::Created, Vec::new());
            for event in &order {
                if let Ok((next, tell)) = phase.on(*event) {
                    phase = next;
                    told.extend(tell);
                }
            }
            assert!(told.iter().filter(|tell| **tell == Tell::Start).count() <= 1, "{order:?} told {told:?}");
            assert!(told.iter().filter(|tell| matches!(tell, Tell::Exit(_))).count() <= 1, "{order:?} told {told:?}");
            let exit = told.iter().position(|tell| matches!(tell, Tell::Exit(_)));
            assert!(exit.is_none_or(|at| at == told.len() - 1), "{order:?} told {told:?}");
        }
    }

    #[test]
    fn an_exit_that_overtakes_start_is_told_after_it() {
        let (phase, told) = Phase::Starting.on(Event::Exited(EXIT)).unwrap();
        assert!(told.is_empty());
        assert_eq!(phase.on(Event::Started).unwrap(), (Phase::Stopped(EXIT), vec![Tell::Start, Tell::Exit(EXIT)]));
    }
}
