//! One process: the first of a container, or an exec.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;
use std::time::SystemTime;

use prost_types::Timestamp;
use tare_proto::ttrpc::{Code, Error};

use super::precondition;
use crate::children::Child;
use crate::phase::{Event, Exit, Phase, Refused, Tell};
use crate::reactor::{Bell, Latch};
use crate::stdio::{Asked, Stdio};

pub struct Process {
    /// The exec's id; empty for a container's first process.
    pub exec: String,
    pub asked: Asked,
    stdio: RefCell<Stdio>,
    /// The client said that there will be no more input, perhaps before there was a process.
    input_closed: Cell<bool>,
    /// What an exec is to run: JSON for the runtime.
    pub spec: Vec<u8>,
    /// Set once there is a process.
    child: RefCell<Option<Rc<Child>>>,
    phase: Cell<Phase>,
    /// Set when the exit was told.
    pub exit: Latch<Exit>,
    /// Rings when the phase changes.
    pub changed: Bell,
    /// A `Delete` is under way.
    pub deleting: Cell<bool>,
}

impl Process {
    pub fn new(exec: String, asked: Asked, spec: Vec<u8>) -> Process {
        Process {
            exec,
            asked,
            stdio: RefCell::default(),
            input_closed: Cell::new(false),
            spec,
            child: RefCell::default(),
            phase: Cell::new(Phase::Created),
            exit: Latch::new(),
            changed: Bell::default(),
            deleting: Cell::new(false),
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves on; the answer is what is to be told.
    pub fn on(&self, event: Event) -> Result<Vec<Tell>, Refused> {
        let (phase, tell) = self.phase.get().on(event)?;
        self.phase.set(phase);
        self.changed.ring();
        Ok(tell)
    }

    pub fn set_stdio(&self, mut stdio: Stdio) {
        if self.input_closed.get() {
            stdio.close_input();
        }
        *self.stdio.borrow_mut() = stdio;
    }

    pub fn close_input(&self) {
        self.input_closed.set(true);
        self.stdio.borrow_mut().close_input();
    }

    pub fn stdio(&self) -> Ref<'_, Stdio> {
        self.stdio.borrow()
    }

    pub fn take_stdio(&self) -> Stdio {
        self.stdio.take()
    }

    pub fn set_child(&self, child: Rc<Child>) {
        *self.child.borrow_mut() = Some(child);
    }

    pub fn child(&self) -> Option<Rc<Child>> {
        self.child.borrow().clone()
    }

    /// 0 as long as there is none.
    pub fn pid(&self) -> u32 {
        self.child.borrow().as_ref().map_or(0, |child| child.pid())
    }

    /// Sends a signal to it and to no other.
    ///
    /// # Errors
    /// It has not been started, or has ended.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let Some(child) = self.child.borrow().clone() else {
            return Err(precondition("process not created: failed precondition".into()));
        };
        child.signal(signal).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => finished(),
            errno => super::failed(format!("sending signal {signal}: {errno}")),
        })
    }
}

/// Clients look for these words.
pub fn finished() -> Error {
    Error::new(Code::NotFound, "process already finished: not found")
}

pub fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Some(time.into())
}
