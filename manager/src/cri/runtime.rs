//! CRI's RuntimeService: each method calls one function and translates its answer.
//!
//! What makes, changes or removes something runs to its end even if the client goes away: half of it must not stay.

use tare_proto::runtime::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Cri};
use crate::error::Result as Outcome;

type Answer<T> = Result<Response<T>, Status>;

/// A list in pieces that fit into messages.
fn in_pieces<T: Send + 'static, M: Send + 'static>(list: Vec<T>, message: fn(Vec<T>) -> M) -> Response<Answers<M>> {
    const PIECE: usize = 100;
    let mut list = list.into_iter();
    Response::new(Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let piece: Vec<T> = list.by_ref().take(PIECE).collect();
        if piece.is_empty() { None } else { Some(Ok(message(piece))) }
    }))))
}

impl Cri {
    async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Outcome<T>> + Send + 'static,
    ) -> Result<T, Status> {
        self.parts.finish(work).await
    }
}

#[tonic::async_trait]
impl pb::runtime_service_server::RuntimeService for Cri {
    type StreamPodSandboxesStream = Answers<pb::StreamPodSandboxesResponse>;
    type StreamContainersStream = Answers<pb::StreamContainersResponse>;
    type StreamContainerStatsStream = Answers<pb::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Answers<pb::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Answers<pb::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Answers<pb::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<pb::VersionRequest>) -> Answer<pb::VersionResponse> {
        Ok(Response::new(Cri::version()))
    }

    async fn run_pod_sandbox(&self, request: Request<pb::RunPodSandboxRequest>) -> Answer<pb::RunPodSandboxResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        let pod_sandbox_id = self.whole(async move { cri.run_pod(request).await }).await?;
        Ok(Response::new(pb::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<pb::StopPodSandboxRequest>,
    ) -> Answer<pb::StopPodSandboxResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.stop_pod(&request.pod_sandbox_id).await }).await?;
        Ok(Response::new(pb::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<pb::RemovePodSandboxRequest>,
    ) -> Answer<pb::RemovePodSandboxResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.remove_pod(&request.pod_sandbox_id).await }).await?;
        Ok(Response::new(pb::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<pb::PodSandboxStatusRequest>,
    ) -> Answer<pb::PodSandboxStatusResponse> {
        Ok(Response::new(self.pod_status(request.get_ref()).await?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<pb::ListPodSandboxRequest>,
    ) -> Answer<pb::ListPodSandboxResponse> {
        let items = self.list_pods(request.get_ref().filter.as_ref());
        Ok(Response::new(pb::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<pb::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let list = self.list_pods(request.get_ref().filter.as_ref());
        Ok(in_pieces(list, |pod_sandboxes| pb::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<pb::CreateContainerRequest>,
    ) -> Answer<pb::CreateContainerResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        let container_id = self.whole(async move { cri.create_container(request).await }).await?;
        Ok(Response::new(pb::CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<pb::StartContainerRequest>) -> Answer<pb::StartContainerResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.start_container(&request.container_id).await }).await?;
        Ok(Response::new(pb::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<pb::StopContainerRequest>) -> Answer<pb::StopContainerResponse> {
        let request = request.into_inner();
        self.stop_container(&request.container_id, request.timeout).await?;
        Ok(Response::new(pb::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<pb::RemoveContainerRequest>,
    ) -> Answer<pb::RemoveContainerResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.remove_container(&request.container_id).await }).await?;
        Ok(Response::new(pb::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<pb::ListContainersRequest>) -> Answer<pb::ListContainersResponse> {
        let containers = self.list_containers(request.get_ref().filter.as_ref());
        Ok(Response::new(pb::ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<pb::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let list = self.list_containers(request.get_ref().filter.as_ref());
        Ok(in_pieces(list, |containers| pb::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<pb::ContainerStatusRequest>,
    ) -> Answer<pb::ContainerStatusResponse> {
        Ok(Response::new(self.container_status(request.get_ref()).await?))
    }

    async fn update_container_resources(
        &self,
        request: Request<pb::UpdateContainerResourcesRequest>,
    ) -> Answer<pb::UpdateContainerResourcesResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.update_resources(request).await }).await?;
        Ok(Response::new(pb::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<pb::ReopenContainerLogRequest>,
    ) -> Answer<pb::ReopenContainerLogResponse> {
        self.reopen_log(&request.get_ref().container_id).await?;
        Ok(Response::new(pb::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<pb::ExecSyncRequest>) -> Answer<pb::ExecSyncResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        let answer = self.whole(async move { cri.exec_sync(request).await }).await?;
        Ok(Response::new(answer))
    }

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Answer<pb::ExecResponse> {
        let url = self.exec_url(request.into_inner())?;
        Ok(Response::new(pb::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        let url = self.attach_url(request.into_inner())?;
        Ok(Response::new(pb::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<pb::PortForwardRequest>) -> Answer<pb::PortForwardResponse> {
        let url = self.port_forward_url(request.into_inner())?;
        Ok(Response::new(pb::PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<pb::ContainerStatsRequest>) -> Answer<pb::ContainerStatsResponse> {
        let id = &request.get_ref().container_id;
        self.running(id)?; // what has ended uses nothing: containerd has no answer either
        let stats = Some(Cri::container_stats(self, id).await?);
        Ok(Response::new(pb::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<pb::ListContainerStatsRequest>,
    ) -> Answer<pb::ListContainerStatsResponse> {
        let stats = Cri::list_container_stats(self, request.into_inner().filter).await?;
        Ok(Response::new(pb::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<pb::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let list = Cri::list_container_stats(self, request.into_inner().filter).await?;
        Ok(in_pieces(list, |container_stats| pb::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<pb::PodSandboxStatsRequest>,
    ) -> Answer<pb::PodSandboxStatsResponse> {
        let stats = Some(self.pod_stats(&request.get_ref().pod_sandbox_id).await?);
        Ok(Response::new(pb::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<pb::ListPodSandboxStatsRequest>,
    ) -> Answer<pb::ListPodSandboxStatsResponse> {
        let stats = self.list_pod_stats(request.into_inner().filter).await?;
        Ok(Response::new(pb::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<pb::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let list = self.list_pod_stats(request.into_inner().filter).await?;
        Ok(in_pieces(list, |pod_sandbox_stats| pb::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<pb::UpdateRuntimeConfigRequest>,
    ) -> Answer<pb::UpdateRuntimeConfigResponse> {
        // The pod network is CNI's to know: there is nothing that a range of addresses could be given to.
        Ok(Response::new(pb::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        Ok(Response::new(self.runtime_status(request.get_ref().verbose).await))
    }

    async fn checkpoint_container(
        &self,
        request: Request<pb::CheckpointContainerRequest>,
    ) -> Answer<pb::CheckpointContainerResponse> {
        let (cri, request) = (self.clone(), request.into_inner());
        self.whole(async move { cri.checkpoint(request).await }).await?;
        Ok(Response::new(pb::CheckpointContainerResponse {}))
    }

    async fn get_container_events(&self, _: Request<pb::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(self.container_events()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<pb::ListMetricDescriptorsRequest>,
    ) -> Answer<pb::ListMetricDescriptorsResponse> {
        Ok(Response::new(pb::ListMetricDescriptorsResponse { descriptors: super::stats::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<pb::ListPodSandboxMetricsRequest>,
    ) -> Answer<pb::ListPodSandboxMetricsResponse> {
        let pod_metrics = self.list_metrics().await?;
        Ok(Response::new(pb::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<pb::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let list = self.list_metrics().await?;
        Ok(in_pieces(list, |pod_sandbox_metrics| pb::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn runtime_config(&self, _: Request<pb::RuntimeConfigRequest>) -> Answer<pb::RuntimeConfigResponse> {
        Ok(Response::new(Cri::runtime_config(self)))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<pb::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<pb::UpdatePodSandboxResourcesResponse> {
        self.update_pod(request.into_inner()).await?;
        Ok(Response::new(pb::UpdatePodSandboxResourcesResponse {}))
    }
}
