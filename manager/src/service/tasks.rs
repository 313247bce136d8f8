use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tare_proto::containerd::services::tasks::v1 as pb;
use tare_proto::containerd::task::v3 as shim;
use tare_proto::containerd::types::Metric;
use tare_proto::containerd::v1::types::Process;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use super::{Services, lease, namespace};
use crate::error::Result;
use crate::filter::Filter;
use crate::names::{Id, Namespace};
use crate::task::{Creation, Exit, Task};

/// How long one shim may keep a list of all tasks waiting.
const PATIENCE: Duration = Duration::from_secs(2);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::tasks_server::Tasks for Services {
    async fn create(&self, request: Request<pb::CreateTaskRequest>) -> Answer<pb::CreateTaskResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = Id::parse(&request.container_id)?;
        let (of, container, asked) = (namespace.clone(), id.clone(), request.clone());
        let (container, checkpoint) = self
            .blocking(move |services| {
                Ok((services.containers.get(&of, &container)?, services.checkpoint_of(&of, &asked)?))
            })
            .await?;
        let creation = Creation {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            rootfs: request.rootfs,
            checkpoint,
            ..Creation::of(container, &request.runtime_path, request.options)?
        };
        let (tasks, made) = (self.tasks.clone(), id.clone());
        let pid = self.finish(async move { tasks.create(&namespace, &made, creation).await }).await?;
        Ok(Response::new(pb::CreateTaskResponse { container_id: id.to_string(), pid }))
    }

    async fn start(&self, request: Request<pb::StartRequest>) -> Answer<pb::StartResponse> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let request = shim::StartRequest { id: task.id.to_string(), exec_id: exec(&request.get_ref().exec_id)? };
        let answer: shim::StartResponse = task.call("Start", &request).await?;
        Ok(Response::new(pb::StartResponse { pid: answer.pid }))
    }

    async fn delete(&self, request: Request<pb::DeleteTaskRequest>) -> Answer<pb::DeleteResponse> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.get_ref().container_id)?);
        let (tasks, gone) = (self.tasks.clone(), id.clone());
        let exit = self.finish(async move { tasks.delete(&namespace, &gone).await }).await?;
        Ok(Response::new(deleted(id.as_str(), exit)))
    }

    async fn delete_process(&self, request: Request<pb::DeleteProcessRequest>) -> Answer<pb::DeleteResponse> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let exec = Id::parse(&request.get_ref().exec_id)?.to_string();
        let request = shim::DeleteRequest { id: task.id.to_string(), exec_id: exec.clone() };
        let answer: shim::DeleteResponse = task.call("Delete", &request).await?;
        Ok(Response::new(deleted(&exec, answer.into())))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Answer<pb::GetResponse> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let state = task.state(&exec(&request.get_ref().exec_id)?).await?;
        Ok(Response::new(pb::GetResponse { process: Some(process(&task, state)) }))
    }

    /// A task whose shim just went, or does not answer, is left out: the others are still there.
    async fn list(&self, request: Request<pb::ListTasksRequest>) -> Answer<pb::ListTasksResponse> {
        let tasks = self.tasks.list(&namespace(&request)?);
        let mut tasks =
            each(tasks, |task| async move { task.state("").await.map(|state| process(&task, state)) }).await;
        tasks.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Response::new(pb::ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<pb::KillRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let pb::KillRequest { exec_id, signal, all, .. } = request.into_inner();
        let request = shim::KillRequest { id: task.id.to_string(), exec_id: exec(&exec_id)?, signal, all };
        task.call::<()>("Kill", &request).await?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<pb::ExecProcessRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let pb::ExecProcessRequest { exec_id, stdin, stdout, stderr, terminal, spec, .. } = request.into_inner();
        let exec_id = Id::parse(&exec_id)?.to_string();
        let id = task.id.to_string();
        let request = shim::ExecProcessRequest { id, exec_id, terminal, stdin, stdout, stderr, spec };
        task.call::<()>("Exec", &request).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<pb::ResizePtyRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let pb::ResizePtyRequest { exec_id, width, height, .. } = request.into_inner();
        let request = shim::ResizePtyRequest { id: task.id.to_string(), exec_id: exec(&exec_id)?, width, height };
        task.call::<()>("ResizePty", &request).await?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<pb::CloseIoRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let pb::CloseIoRequest { exec_id, stdin, .. } = request.into_inner();
        let request = shim::CloseIoRequest { id: task.id.to_string(), exec_id: exec(&exec_id)?, stdin };
        task.call::<()>("CloseIO", &request).await?;
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<pb::PauseTaskRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        task.call::<()>("Pause", &shim::PauseRequest { id: task.id.to_string() }).await?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<pb::ResumeTaskRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        task.call::<()>("Resume", &shim::ResumeRequest { id: task.id.to_string() }).await?;
        Ok(Response::new(()))
    }

    async fn list_pids(&self, request: Request<pb::ListPidsRequest>) -> Answer<pb::ListPidsResponse> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let answer: shim::PidsResponse = task.call("Pids", &shim::PidsRequest { id: task.id.to_string() }).await?;
        Ok(Response::new(pb::ListPidsResponse { processes: answer.processes }))
    }

    async fn checkpoint(&self, request: Request<pb::CheckpointTaskRequest>) -> Answer<pb::CheckpointTaskResponse> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let services = self.clone();
        let dump = async move { services.dump(namespace, lease, request.into_inner()).await };
        Ok(Response::new(pb::CheckpointTaskResponse { descriptors: self.finish(dump).await? }))
    }

    async fn update(&self, request: Request<pb::UpdateTaskRequest>) -> Answer<()> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let pb::UpdateTaskRequest { resources, annotations, .. } = request.into_inner();
        let request = shim::UpdateTaskRequest { id: task.id.to_string(), resources, annotations };
        task.call::<()>("Update", &request).await?;
        Ok(Response::new(()))
    }

    /// A task without statistics, since it has no cgroup or just ended, is left out.
    async fn metrics(&self, request: Request<pb::MetricsRequest>) -> Answer<pb::MetricsResponse> {
        let namespace = namespace(&request)?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let mut tasks = self.tasks.list(&namespace);
        tasks.retain(|task| filter.matches(|path| field(task, path)));
        let metrics = each(tasks, |task| async move {
            let request = shim::StatsRequest { id: task.id.to_string() };
            let answer: shim::StatsResponse = task.call("Stats", &request).await?;
            Ok(Metric { timestamp: Some(SystemTime::now().into()), id: task.id.to_string(), data: answer.stats })
        });
        Ok(Response::new(pb::MetricsResponse { metrics: metrics.await }))
    }

    async fn wait(&self, request: Request<pb::WaitRequest>) -> Answer<pb::WaitResponse> {
        let task = self.task(namespace(&request)?, &request.get_ref().container_id)?;
        let exit = task.wait(&exec(&request.get_ref().exec_id)?).await?;
        Ok(Response::new(pb::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }))
    }
}

impl Services {
    fn task(&self, namespace: Namespace, id: &str) -> Result<Arc<Task>> {
        self.tasks.get(&namespace, &Id::parse(id)?)
    }
}

/// Empty for the task's first process.
fn exec(id: &str) -> Result<String> {
    if id.is_empty() { Ok(String::new()) } else { Id::parse(id).map(|id| id.to_string()) }
}

fn deleted(id: &str, exit: Exit) -> pb::DeleteResponse {
    pb::DeleteResponse { id: id.to_owned(), pid: exit.pid, exit_status: exit.status, exited_at: Some(exit.at) }
}

fn process(task: &Task, state: shim::StateResponse) -> Process {
    Process {
        container_id: task.id.to_string(),
        id: if state.exec_id.is_empty() { task.id.to_string() } else { state.exec_id },
        pid: state.pid,
        status: state.status,
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    }
}

fn field(task: &Task, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "id" => Some(task.id.to_string()),
        [first] if first == "namespace" => Some(task.namespace.to_string()),
        _ => None,
    }
}

/// Asks all shims at once, and keeps what was answered in time.
async fn each<T, F>(tasks: Vec<Arc<Task>>, ask: impl Fn(Arc<Task>) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for task in tasks {
        asked.spawn(tokio::time::timeout(PATIENCE, ask(task)));
    }
    asked.join_all().await.into_iter().filter_map(|answer| answer.ok()?.ok()).collect()
}
