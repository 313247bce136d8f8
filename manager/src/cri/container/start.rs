//! StartContainer.

use std::sync::Arc;

use tare_proto::containerd::task::v3 as shim;
use tare_proto::runtime::v1 as pb;

use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Container, ContainerState, PodState};
use crate::cri::{Cri, events, folders, namespace, now};
use crate::error::{Error, Result};
use crate::names::Id;
use crate::task::Creation;

/// What cannot be started has ended with this. Source: containerd `internal/cri/server/container_start.go`.
const START_ERROR: (i32, &str) = (128, "StartError");

/// Writes down that a container runs.
pub(in crate::cri) async fn is_running(container: &Arc<Record<Container>>, pid: u32) -> Result<()> {
    let change = move |row: &mut Container| {
        (row.started_at, row.pid) = (now(), pid);
        row.set_state(ContainerState::Running);
        Ok(())
    };
    container.change(change).await.map(|_| ())
}

impl Cri {
    pub(in crate::cri) async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.containers.find(id)?;
        let pod = self.pods.find(&container.row().pod)?;
        let _stays = pod.turn.read().await;
        let _turn = container.turn.write().await;
        let row = container.row();
        if row.state() != ContainerState::Created {
            let text = format!("container {:?} is in {:?} state, it must be created", container.id, row.state());
            return Err(Error::FailedPrecondition(text));
        }
        if pod.row().state() != PodState::Ready {
            return Err(Error::FailedPrecondition(format!("sandbox container {:?} is not running", pod.id)));
        }
        match self.run(&container).await {
            Ok(pid) => {
                is_running(&container, pid).await?;
                events::container(self, &container, pb::ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Err(error) => {
                let message = error.to_string();
                self.delete_task(&container.id).await?;
                container
                    .change(move |row| {
                        (row.exit_code, row.reason, row.message) = (START_ERROR.0, START_ERROR.1.into(), message);
                        row.finished_at = now();
                        row.set_state(ContainerState::Exited);
                        Ok(())
                    })
                    .await?;
                Err(error)
            }
        }
    }

    /// Makes the task and lets it run; its pid.
    async fn run(&self, container: &Arc<Record<Container>>) -> Result<u32> {
        let id = Id::parse(&container.id)?;
        let (cri, row, name) = (self.clone(), container.row(), id.clone());
        let (record, rootfs) = off_thread(move || {
            if let Some(folder) = std::path::Path::new(&row.log_path).parent().filter(|_| !row.log_path.is_empty()) {
                folders::make(folder, 0o755)?;
            }
            Ok((cri.parts.containers.get(&namespace(), &name)?, cri.root_of(name.as_str())?))
        })
        .await?;
        let row = container.row();
        let config = row.config();
        let runtime = record.runtime.unwrap_or_default();
        let log = log_uri(&row);
        let creation = Creation {
            runtime: runtime.name,
            options: runtime.options,
            spec: record.spec.unwrap_or_default().value,
            sandbox: Some(Id::parse(&row.pod)?),
            rootfs,
            terminal: config.tty,
            stdin: if config.stdin { self.stdin_of(&container.id) } else { String::new() },
            stderr: if config.tty { String::new() } else { log.clone() },
            stdout: log,
            checkpoint: None,
        };
        self.parts.tasks.create(&namespace(), &id, creation).await?;
        let task = self.parts.tasks.get(&namespace(), &id)?;
        let request = shim::StartRequest { id: id.to_string(), exec_id: String::new() };
        let answer: shim::StartResponse = task.call("Start", &request).await?;
        Ok(answer.pid)
    }

    pub(in crate::cri) fn stdin_of(&self, container: &str) -> String {
        let [_, mounted] = self.folders.of_container(container);
        mounted.join("stdin").display().to_string()
    }
}

/// Where the shim writes what the container says. Without a log clients can still listen to it.
fn log_uri(row: &Container) -> String {
    format!("cri://{}", row.log_path)
}
