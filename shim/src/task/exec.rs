//! `Exec`: one more process is added to a container; `Start` starts it.

use std::rc::Rc;

use tare_proto::containerd::events::TaskExecAdded;
use tare_proto::containerd::task::v3::ExecProcessRequest;
use tare_proto::ttrpc::{Code, Error};

use super::process::Process;
use super::{Supervisor, invalid, precondition};
use crate::args::is_name;
use crate::phase::Phase;
use crate::stdio::Asked;

impl Supervisor {
    pub(super) fn exec(&self, request: ExecProcessRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        let exec = request.exec_id;
        if !is_name(&exec) {
            return Err(invalid(format!("exec id {exec:?}: an id is 1 to 200 letters, digits and _+-.")));
        }
        if container.execs.borrow().contains_key(&exec) {
            return Err(Error::new(Code::AlreadyExists, format!("exec {exec}: already exists")));
        }
        match container.init.phase() {
            phase @ (Phase::Pausing | Phase::Paused | Phase::Stopped(_) | Phase::Gone) => {
                return Err(precondition(format!("cannot exec in a {} container: failed precondition", phase.word())));
            }
            Phase::Created | Phase::Starting | Phase::Early(_) | Phase::Running => {}
        }
        let spec = request.spec.ok_or_else(|| invalid("spec: it is missing"))?.value;
        let asked =
            Asked { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let process = Rc::new(Process::new(exec.clone(), asked, spec));
        container.execs.borrow_mut().insert(exec.clone(), process);
        let added = TaskExecAdded { container_id: request.id, exec_id: exec };
        self.events.tell("/tasks/exec-added", "TaskExecAdded", &added);
        Ok(())
    }
}
