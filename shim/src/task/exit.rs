//! What follows from a process's end, and how the daemon is told of all that happens.

use std::rc::Rc;

use tare_proto::containerd::events::{
    TaskDelete, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart,
};

use super::process::{Process, timestamp};
use super::{Container, Supervisor};
use crate::log;
use crate::phase::{Event, Exit, Tell};
use crate::reactor::{self, Either};
use crate::runtime::Streams;

impl Supervisor {
    /// Waits for a process's end, and for kills by the kernel until then.
    pub(super) fn watch(self: &Rc<Self>, container: Rc<Container>, process: Rc<Process>) {
        let Some(child) = process.child() else { return };
        let this = self.clone();
        reactor::spawn(async move {
            let exit = if process.exec.is_empty() {
                let exit = match reactor::race(child.exit(), this.tell_kills(&container)).await {
                    Either::First(exit) => exit,
                    Either::Second(()) => child.exit().await,
                };
                this.init_ended(&container).await;
                exit
            } else {
                child.exit().await
            };
            this.happened(&container, &process, Event::Exited(exit));
            this.children.reap_strangers();
        });
    }

    /// Returns when there can be no more.
    async fn tell_kills(&self, container: &Container) {
        let Some(watch) = container.oom.get() else { return };
        while watch.next().await.is_some() {
            self.events.tell("/tasks/oom", "TaskOOM", &TaskOom { container_id: container.id.clone() });
        }
    }

    /// A container ends with its first process: the others are ended, and their exits are told first.
    async fn init_ended(&self, container: &Container) {
        // The exit may have overtaken the news of the kill, and who reads the exit wants to know why.
        if container.oom.get().is_some_and(crate::cgroup::OomWatch::untold) {
            self.events.tell("/tasks/oom", "TaskOOM", &TaskOom { container_id: container.id.clone() });
        }
        if container.outlives_init {
            let kill = ["kill", "--all", &container.id, "9"];
            if let Err(error) = container.runtime.run(&self.children, &kill, Streams::null()).await {
                log::warn(&format!("ending the processes of {}: {error}", container.id));
            }
        }
        let execs: Vec<Rc<Process>> = container.execs.borrow().values().cloned().collect();
        for exec in execs {
            exec.changed.until(|| (!exec.phase().is_live()).then_some(())).await;
        }
    }

    /// Moves a process on, and tells the daemon and whoever waits.
    pub(super) fn happened(&self, container: &Container, process: &Process, event: Event) {
        match process.on(event) {
            Ok(tells) => tells.into_iter().for_each(|tell| self.tell(container, process, tell)),
            Err(refused) => log::warn(&format!("{}: {refused:?} cannot be", container.id)),
        }
    }

    fn tell(&self, container: &Container, process: &Process, tell: Tell) {
        let (events, pid) = (&self.events, process.pid());
        let (container_id, exec_id) = (container.id.clone(), process.exec.clone());
        match tell {
            Tell::Start if exec_id.is_empty() => {
                events.tell("/tasks/start", "TaskStart", &TaskStart { container_id, pid });
            }
            Tell::Start => {
                events.tell("/tasks/exec-started", "TaskExecStarted", &TaskExecStarted { container_id, exec_id, pid });
            }
            Tell::Paused => events.tell("/tasks/paused", "TaskPaused", &TaskPaused { container_id }),
            Tell::Resumed => events.tell("/tasks/resumed", "TaskResumed", &TaskResumed { container_id }),
            Tell::Exit(exit) => {
                let id = if exec_id.is_empty() { container_id.clone() } else { exec_id };
                let (exit_status, exited_at) = (exit.status, timestamp(exit.at));
                events.tell("/tasks/exit", "TaskExit", &TaskExit { container_id, id, pid, exit_status, exited_at });
                process.exit.set(exit);
            }
            // Of an exec's deletion nobody is told: so does containerd's own shim.
            Tell::Delete if !exec_id.is_empty() => {}
            Tell::Delete => {
                let Exit { status: exit_status, at } = process.exit.get().unwrap_or(NEVER_STARTED);
                let (id, exited_at) = (String::new(), timestamp(at));
                events.tell(
                    "/tasks/delete",
                    "TaskDelete",
                    &TaskDelete { container_id, pid, exit_status, exited_at, id },
                );
            }
        }
    }
}

/// What is told of a process that was deleted before there was one.
const NEVER_STARTED: Exit = Exit { status: 0, at: std::time::SystemTime::UNIX_EPOCH };
