//! The Task service: the containers of one group and their processes.
//!
//! Each method is a list of steps in a file of its own; while one waits, for the runtime say, others go on.
//!
//! Source: containerd `api/runtime/task/v3/shim.proto`; the errors are those that containerd's own shim gives.

mod call;
mod checkpoint;
mod control;
mod create;
mod delete;
mod exec;
mod exit;
mod kill;
mod process;
mod query;
mod start;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tare_proto::ttrpc::{Code, Error};

use crate::bundle::Config;
use crate::cgroup::{Cgroups, OomWatch};
use crate::children::Child;
use crate::children::Children;
use crate::events::Events;
use crate::log;
use crate::logs::{Log, Logs};
use crate::options::Options;
use crate::reactor::Latch;
use crate::runtime::Runtime;
use crate::sandbox::Sandbox;
use checkpoint::Restore;
use process::Process;
pub(crate) use process::timestamp;

/// All that one shim supervises.
pub struct Supervisor {
    pub namespace: String,
    pub debug: bool,
    pub events: Rc<Events>,
    pub children: Rc<Children>,
    pub logs: Rc<Logs>,
    /// A folder of our own, for sockets that a terminal is handed over by.
    pub sockets: PathBuf,
    /// Set when the last task is gone and the daemon says so: how long the process stays for that answer to be read.
    pub over: Latch<Duration>,
    containers: RefCell<BTreeMap<String, Rc<Container>>>,
    /// The pod that the containers are in, if it was made by us.
    pub(crate) sandbox: RefCell<Option<Rc<Sandbox>>>,
    /// Ids whose `Create` is under way.
    reserved: RefCell<BTreeSet<String>>,
    numbers: Cell<u64>,
}

struct Container {
    id: String,
    bundle: PathBuf,
    runtime: Runtime,
    /// Who owns the pipes to loggers.
    io_owner: (u32, u32),
    /// Its processes can outlive the first one, and must be ended with it.
    outlives_init: bool,
    /// Known once there is a process.
    cgroups: OnceCell<Cgroups>,
    oom: OnceCell<OomWatch>,
    /// It is made from a checkpoint, by `Start`.
    restore: Option<Restore>,
    init: Rc<Process>,
    execs: RefCell<BTreeMap<String, Rc<Process>>>,
}

impl Supervisor {
    pub fn new(
        namespace: &str,
        debug: bool,
        sockets: PathBuf,
        events: Rc<Events>,
        children: Rc<Children>,
        logs: Rc<Logs>,
    ) -> Supervisor {
        Supervisor {
            namespace: namespace.to_owned(),
            debug,
            events,
            children,
            logs,
            sockets,
            over: Latch::new(),
            containers: RefCell::default(),
            sandbox: RefCell::default(),
            reserved: RefCell::default(),
            numbers: Cell::new(0),
        }
    }

    fn container(&self, id: &str) -> Result<Rc<Container>, Error> {
        let missing = || Error::new(Code::NotFound, format!("container not created: {id}: not found"));
        self.containers.borrow().get(id).cloned().ok_or_else(missing)
    }

    /// A container and one of its processes: the first one, or an exec.
    fn process(&self, id: &str, exec: &str) -> Result<(Rc<Container>, Rc<Process>), Error> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    /// The log of one process, if its output goes to one.
    pub(crate) fn log_of(&self, id: &str, exec: &str) -> Result<Option<Rc<Log>>, Error> {
        Ok(self.process(id, exec)?.1.stdio().log())
    }

    /// All logs of a container's processes.
    pub(crate) fn logs_of(&self, id: &str) -> Result<Vec<Rc<Log>>, Error> {
        let container = self.container(id)?;
        let execs = container.execs.borrow();
        let processes = std::iter::once(&container.init).chain(execs.values());
        Ok(processes.filter_map(|process| process.stdio().log()).collect())
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }
}

impl Container {
    fn new(
        id: &str,
        bundle: PathBuf,
        runtime: Runtime,
        options: &Options,
        config: &Config,
        init: Process,
        restore: Option<Restore>,
    ) -> Rc<Container> {
        Rc::new(Container {
            id: id.to_owned(),
            bundle,
            runtime,
            io_owner: (options.io_uid, options.io_gid),
            outlives_init: config.outlives_init(),
            cgroups: OnceCell::new(),
            oom: OnceCell::new(),
            restore,
            init: Rc::new(init),
            execs: RefCell::default(),
        })
    }

    /// Its first process is there. A container whose kills cannot be seen runs all the same.
    fn adopt(&self, child: Child) {
        if let Some(cgroups) = Cgroups::of(child.pid()) {
            match OomWatch::arm(&cgroups) {
                Ok(Some(watch)) => drop(self.oom.set(watch)),
                Ok(None) => {}
                Err(error) => log::warn(&error.to_string()),
            }
            let _ = self.cgroups.set(cgroups); // there is one first process
        }
        self.init.set_child(Rc::new(child));
    }

    fn process(&self, exec: &str) -> Result<Rc<Process>, Error> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let missing = || Error::new(Code::NotFound, format!("process does not exist: {exec}: not found"));
        self.execs.borrow().get(exec).cloned().ok_or_else(missing)
    }
}

/// What is asked for at the wrong time.
pub(crate) fn precondition(text: String) -> Error {
    Error::new(Code::FailedPrecondition, text)
}

pub(crate) fn invalid(text: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidArgument, text.to_string())
}

/// What failed on the way, in its own words.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Unknown, error.to_string())
}
