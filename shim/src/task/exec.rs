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

/// Whether there is a terminal is what the request says: clients send the container's own process with other words in it.
fn with_terminal(spec: &[u8], terminal: bool) -> serde_json::Result<Vec<u8>> {
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(spec)?;
    process.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process)
}

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
        let spec = with_terminal(&spec, request.terminal).map_err(|error| invalid(format!("spec: {error}")))?;
        let asked =
            Asked { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let process = Rc::new(Process::new(exec.clone(), asked, spec));
        container.execs.borrow_mut().insert(exec.clone(), process);
        let added = TaskExecAdded { container_id: request.id, exec_id: exec };
        self.events.tell("/tasks/exec-added", "TaskExecAdded", &added);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::with_terminal;

    #[test]
    fn the_request_says_whether_there_is_a_terminal() {
        assert_eq!(
            with_terminal(br#"{"args":["a"],"terminal":true}"#, false).unwrap(),
            br#"{"args":["a"],"terminal":false}"#
        );
        assert_eq!(with_terminal(b"{}", true).unwrap(), br#"{"terminal":true}"#);
        assert!(with_terminal(b"[]", true).is_err());
    }
}
