//! `Delete`: of a process that has ended, or was never started.

use std::rc::Rc;

use tare_proto::containerd::task::v3::{DeleteRequest, DeleteResponse};
use tare_proto::ttrpc::{Code, Error};

use super::process::{Process, timestamp};
use super::{Container, Supervisor, failed, precondition};
use crate::log;
use crate::phase::{Event, Exit, Phase};
use crate::rootfs;
use crate::runtime::Streams;

impl Supervisor {
    pub(super) async fn delete(self: &Rc<Self>, request: DeleteRequest) -> Result<DeleteResponse, Error> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        if process.deleting.replace(true) {
            return Err(Error::new(Code::NotFound, "process is being deleted: not found"));
        }
        let deleted = if process.exec.is_empty() {
            self.delete_container(&container).await
        } else {
            check(&process).map(|()| drop(container.execs.borrow_mut().remove(&process.exec)))
        };
        if let Err(error) = deleted {
            process.deleting.set(false);
            return Err(error);
        }
        process.take_stdio().finish().await;
        self.happened(&container, &process, Event::Deleted);
        if process.exec.is_empty() {
            self.containers.borrow_mut().remove(&container.id);
            self.leave_pod(&container.id);
        }
        let exit = process.exit.get();
        Ok(DeleteResponse {
            pid: process.pid(),
            exit_status: exit.map_or(0, |exit: Exit| exit.status),
            exited_at: exit.and_then(|exit| timestamp(exit.at)),
        })
    }

    /// The runtime deletes it, and kills one that was never started; then its root is unmounted.
    async fn delete_container(&self, container: &Container) -> Result<(), Error> {
        check(&container.init)?;
        let words = ["delete", &container.id];
        if let Err(error) = container.runtime.run(&self.children, &words, Streams::null()).await {
            // One that is gone already is what is wanted.
            if !error.to_string().contains("does not exist") {
                return Err(failed(format!("OCI runtime delete failed: {error}")));
            }
        }
        if container.init.child().is_some() {
            container.init.exit.wait().await; // else it was to be restored, and was not
        }
        rootfs::unmount_all(&container.bundle.join("rootfs"))?;
        Ok(())
    }
}

impl Supervisor {
    /// Ends and deletes all containers, in whatever state they are: their pod goes.
    pub(crate) async fn force_out_all(&self) {
        let containers: Vec<Rc<Container>> = self.containers.borrow().values().cloned().collect();
        for container in containers {
            let words = ["delete", "--force", &container.id];
            if let Err(error) = container.runtime.run(&self.children, &words, Streams::null()).await {
                log::warn(&format!("deleting {} with its pod: {error}", container.id));
            }
            if let Err(error) = rootfs::unmount_all(&container.bundle.join("rootfs")) {
                log::warn(&error.to_string());
            }
            self.containers.borrow_mut().remove(&container.id);
            self.leave_pod(&container.id);
        }
    }
}

fn check(process: &Process) -> Result<(), Error> {
    match process.phase() {
        Phase::Created | Phase::Stopped(_) => Ok(()),
        phase => Err(precondition(format!("cannot delete a {} process: failed precondition", phase.word()))),
    }
}
