//! What may happen to one process, and what containerd is told of it: one pure function.
//!
//! Reading the world comes before it, telling comes after. Each of start, exit and delete is told once, in that order,
//! however the events arrive: an exit may overtake the answer to start.

use std::time::SystemTime;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 and the signal's number.
    pub status: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Created,
    /// The runtime is starting it.
    Starting,
    /// It has ended before the runtime said that it was started.
    Early(Exit),
    Running,
    /// The runtime is freezing it.
    Pausing,
    Paused,
    Stopped(Exit),
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    StartCalled,
    Started,
    StartFailed,
    PauseCalled,
    Paused,
    PauseFailed,
    Resumed,
    Exited(Exit),
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    Start,
    Paused,
    Resumed,
    Exit(Exit),
    Delete,
}

/// An event that this phase has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub Phase, pub Event);

impl Phase {
    /// What one event makes of a process, and what containerd is told of it, in this order.
    ///
    /// # Errors
    /// The event has no place here; nothing has changed.
    pub fn on(self, event: Event) -> Result<(Phase, Vec<Tell>), Refused> {
        use Event as E;
        use Phase as P;
        Ok(match (self, event) {
            (P::Created, E::StartCalled) => (P::Starting, vec![]),
            (P::Starting, E::Started) => (P::Running, vec![Tell::Start]),
            (P::Starting, E::StartFailed) => (P::Created, vec![]),
            // The exit overtook the answer to start: it is kept until that is known.
            (P::Starting, E::Exited(exit)) => (P::Early(exit), vec![]),
            (P::Early(exit), E::Started) => (P::Stopped(exit), vec![Tell::Start, Tell::Exit(exit)]),
            (P::Early(exit), E::StartFailed) => (P::Stopped(exit), vec![Tell::Exit(exit)]),
            (P::Running, E::PauseCalled) => (P::Pausing, vec![]),
            (P::Pausing, E::Paused) => (P::Paused, vec![Tell::Paused]),
            (P::Pausing, E::PauseFailed) => (P::Running, vec![]),
            (P::Paused, E::Resumed) => (P::Running, vec![Tell::Resumed]),
            // Killed before it was started, or after.
            (P::Created | P::Running | P::Pausing | P::Paused, E::Exited(exit)) => {
                (P::Stopped(exit), vec![Tell::Exit(exit)])
            }
            // An answer that was overtaken by the exit.
            (P::Stopped(_), E::Paused | E::PauseFailed | E::Resumed) => (self, vec![]),
            (P::Created | P::Stopped(_), E::Deleted) => (P::Gone, vec![Tell::Delete]),
            (phase, event) => return Err(Refused(phase, event)),
        })
    }

    /// Whether an exit is still to be told.
    pub fn is_live(self) -> bool {
        matches!(self, Phase::Starting | Phase::Early(_) | Phase::Running | Phase::Pausing | Phase::Paused)
    }

    /// In the words of messages: `cannot start a RUNNING process`.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Starting | Phase::Early(_) => "starting",
            Phase::Running => "running",
            Phase::Pausing => "pausing",
            Phase::Paused => "paused",
            Phase::Stopped(_) => "stopped",
            Phase::Gone => "deleted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };

    /// Every order of the given events.
    fn orders(events: &[Event]) -> Vec<Vec<Event>> {
        if events.is_empty() {
            return vec![vec![]];
        }
        (0..events.len())
            .flat_map(|index| {
                let mut rest = events.to_vec();
                let first = rest.remove(index);
                orders(&rest).into_iter().map(move |order| [vec![first], order].concat())
            })
            .collect()
    }

    fn replay(order: &[Event]) -> Vec<Tell> {
        let mut phase = Phase::Created;
        let mut told = Vec::new();
        for event in order {
            if let Ok((next, tell)) = phase.on(*event) {
                phase = next;
                told.extend(tell);
            }
        }
        told
    }

    fn rank(tell: &Tell) -> u8 {
        match tell {
            Tell::Start => 0,
            Tell::Paused => 1,
            Tell::Resumed => 2,
            Tell::Exit(_) => 3,
            Tell::Delete => 4,
        }
    }

    /// However the events fall, containerd hears start, exit, delete: in that order, each at most once.
    #[test]
    fn no_order_of_events_makes_the_shim_lie() {
        use Event::{Deleted, Exited, PauseCalled, Paused, Resumed, StartCalled, Started};
        for order in orders(&[StartCalled, Started, PauseCalled, Paused, Resumed, Exited(EXIT), Deleted]) {
            let told = replay(&order);
            assert!(told.is_sorted_by(|a, b| rank(a) < rank(b)), "{order:?} told {told:?}");
        }
    }

    #[test]
    fn an_exit_that_overtakes_the_answer_to_start_is_told_after_it() {
        use Event::{Deleted, Exited, StartCalled, Started};
        let told = replay(&[StartCalled, Exited(EXIT), Started, Deleted]);
        assert_eq!(told, [Tell::Start, Tell::Exit(EXIT), Tell::Delete]);
    }

    #[test]
    fn a_failed_start_is_not_told_and_may_be_tried_again() {
        use Event::{StartCalled, StartFailed, Started};
        assert_eq!(replay(&[StartCalled, StartFailed, StartCalled, Started]), [Tell::Start]);
        assert_eq!(replay(&[StartCalled, Event::Exited(EXIT), StartFailed]), [Tell::Exit(EXIT)]);
    }

    #[test]
    fn a_running_process_is_neither_started_again_nor_deleted() {
        assert!(Phase::Running.on(Event::StartCalled).is_err());
        assert!(Phase::Running.on(Event::Deleted).is_err());
        assert!(Phase::Paused.on(Event::Deleted).is_err());
    }
}
