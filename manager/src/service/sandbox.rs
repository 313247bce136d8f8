use tare_proto::containerd::events::{SandboxCreate, SandboxExit, SandboxStart};
use tare_proto::containerd::services::sandbox::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, namespace, required};
use crate::error::{Error, Result};
use crate::names::Id;
use crate::sandbox::Creation;

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::store_server::Store for Services {
    async fn create(&self, request: Request<pb::StoreCreateRequest>) -> Answer<pb::StoreCreateResponse> {
        let (namespace, given) = (namespace(&request)?, required(request.into_inner().sandbox, "sandbox")?);
        let sandbox = self.blocking(move |services| services.sandbox_records.create(&namespace, given)).await?;
        Ok(Response::new(pb::StoreCreateResponse { sandbox: Some(sandbox) }))
    }

    async fn update(&self, request: Request<pb::StoreUpdateRequest>) -> Answer<pb::StoreUpdateResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (given, fields) = (required(request.sandbox, "sandbox")?, request.fields);
        let sandbox =
            self.blocking(move |services| services.sandbox_records.update(&namespace, &given, &fields)).await?;
        Ok(Response::new(pb::StoreUpdateResponse { sandbox: Some(sandbox) }))
    }

    async fn delete(&self, request: Request<pb::StoreDeleteRequest>) -> Answer<pb::StoreDeleteResponse> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.into_inner().sandbox_id)?);
        self.blocking(move |services| services.sandbox_records.delete(&namespace, &id)).await?;
        self.collector.after(false).await?;
        Ok(Response::new(pb::StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<pb::StoreListRequest>) -> Answer<pb::StoreListResponse> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        let list = self.blocking(move |services| services.sandbox_records.list(&namespace, &filters)).await?;
        Ok(Response::new(pb::StoreListResponse { list }))
    }

    async fn get(&self, request: Request<pb::StoreGetRequest>) -> Answer<pb::StoreGetResponse> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.into_inner().sandbox_id)?);
        let sandbox = self.blocking(move |services| services.sandbox_records.get(&namespace, &id)).await?;
        Ok(Response::new(pb::StoreGetResponse { sandbox: Some(sandbox) }))
    }
}

#[tonic::async_trait]
impl pb::controller_server::Controller for Services {
    /// A client of before 2.0 sends no record: it is the one in the store.
    async fn create(&self, request: Request<pb::ControllerCreateRequest>) -> Answer<pb::ControllerCreateResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let record = match request.sandbox {
            Some(record) => record,
            None => {
                let (of, id) = (namespace.clone(), id.clone());
                self.blocking(move |services| services.sandbox_records.get(&of, &id)).await?
            }
        };
        let runtime = required(record.runtime, "sandbox.runtime")?;
        let creation = Creation {
            runtime: runtime.name,
            options: runtime.options,
            spec: record.spec.map(|spec| spec.value),
            rootfs: request.rootfs,
            config: request.options,
            netns: request.netns_path,
            annotations: request.annotations,
        };
        let (sandboxes, of, made) = (self.sandboxes.clone(), namespace.clone(), id.clone());
        self.finish(async move { sandboxes.create(&of, &made, creation).await }).await?;
        self.tell(&namespace, "/sandboxes/create", &SandboxCreate { sandbox_id: id.to_string() });
        Ok(Response::new(pb::ControllerCreateResponse { sandbox_id: id.to_string() }))
    }

    async fn start(&self, request: Request<pb::ControllerStartRequest>) -> Answer<pb::ControllerStartResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let (sandboxes, of, begun) = (self.sandboxes.clone(), namespace.clone(), id.clone());
        let started = self.finish(async move { sandboxes.start(&of, &begun).await }).await?;
        self.tell(&namespace, "/sandboxes/start", &SandboxStart { sandbox_id: id.to_string() });
        let (address, version) = self.sandboxes.endpoint(&namespace, &id)?;
        Ok(Response::new(pb::ControllerStartResponse {
            sandbox_id: id.to_string(),
            pid: started.pid,
            created_at: started.at,
            address,
            version,
            ..Default::default()
        }))
    }

    async fn platform(
        &self,
        request: Request<pb::ControllerPlatformRequest>,
    ) -> Answer<pb::ControllerPlatformResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let platform = self.sandboxes.platform(&namespace, &id).await?;
        Ok(Response::new(pb::ControllerPlatformResponse { platform: Some(platform) }))
    }

    async fn stop(&self, request: Request<pb::ControllerStopRequest>) -> Answer<pb::ControllerStopResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        self.sandboxes.stop(&namespace, &id, request.timeout_secs).await?;
        Ok(Response::new(pb::ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<pb::ControllerWaitRequest>) -> Answer<pb::ControllerWaitResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let exit = self.sandboxes.wait(&namespace, &id).await?;
        let (exit_status, exited_at) = (exit.exit_status, exit.exited_at);
        let event = SandboxExit { sandbox_id: id.to_string(), exit_status, exited_at };
        self.tell(&namespace, "/sandboxes/exit", &event);
        Ok(Response::new(pb::ControllerWaitResponse { exit_status, exited_at }))
    }

    /// Of one that is gone there is nothing to tell, and that is no error: the kubelet's side asks about dead pods.
    async fn status(&self, request: Request<pb::ControllerStatusRequest>) -> Answer<pb::ControllerStatusResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let endpoint = self.sandboxes.endpoint(&namespace, &id);
        let status = match self.sandboxes.status(&namespace, &id, request.verbose).await {
            Err(Error::NotFound(_)) if endpoint.is_err() => {
                let exited_at = Some(std::time::SystemTime::now().into());
                let gone = pb::ControllerStatusResponse { sandbox_id: id.to_string(), exited_at, ..Default::default() };
                return Ok(Response::new(gone));
            }
            status => status?,
        };
        let (address, version) = endpoint?;
        Ok(Response::new(pb::ControllerStatusResponse {
            sandbox_id: status.sandbox_id,
            pid: status.pid,
            state: status.state,
            info: status.info,
            created_at: status.created_at,
            exited_at: status.exited_at,
            extra: status.extra,
            address,
            version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ControllerShutdownRequest>,
    ) -> Answer<pb::ControllerShutdownResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let sandboxes = self.sandboxes.clone();
        self.finish(async move { sandboxes.shutdown(&namespace, &id).await }).await?;
        Ok(Response::new(pb::ControllerShutdownResponse {}))
    }

    async fn metrics(&self, request: Request<pb::ControllerMetricsRequest>) -> Answer<pb::ControllerMetricsResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        let metrics = self.sandboxes.metrics(&namespace, &id).await?;
        Ok(Response::new(pb::ControllerMetricsResponse { metrics }))
    }

    /// The record changes in the store; the shim's contract has no call for it, so a living sandbox has nothing to be told.
    async fn update(&self, request: Request<pb::ControllerUpdateRequest>) -> Answer<pb::ControllerUpdateResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = named(&request.sandbox_id, &request.sandboxer)?;
        self.sandboxes.endpoint(&namespace, &id)?;
        Ok(Response::new(pb::ControllerUpdateResponse {}))
    }
}

/// The sandbox's name, if it is for the one controller that there is. Clients of before 2.0 name none.
fn named(id: &str, sandboxer: &str) -> Result<Id> {
    match sandboxer {
        "" | "shim" => Id::parse(id),
        other => Err(Error::NotFound(format!("sandbox controller {other:?}"))),
    }
}
