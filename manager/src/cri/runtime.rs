//! CRI's RuntimeService: each method checks nothing and does nothing, it calls one function.

use tare_proto::runtime::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answers, Cri};
use crate::error::Error;

type Answer<T> = Result<Response<T>, Status>;

fn unserved<T>(method: &str) -> Answer<T> {
    Err(Error::Unimplemented(format!("RuntimeService.{method}")).into())
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

    async fn run_pod_sandbox(&self, _: Request<pb::RunPodSandboxRequest>) -> Answer<pb::RunPodSandboxResponse> {
        unserved("RunPodSandbox")
    }

    async fn stop_pod_sandbox(&self, _: Request<pb::StopPodSandboxRequest>) -> Answer<pb::StopPodSandboxResponse> {
        unserved("StopPodSandbox")
    }

    async fn remove_pod_sandbox(
        &self,
        _: Request<pb::RemovePodSandboxRequest>,
    ) -> Answer<pb::RemovePodSandboxResponse> {
        unserved("RemovePodSandbox")
    }

    async fn pod_sandbox_status(
        &self,
        _: Request<pb::PodSandboxStatusRequest>,
    ) -> Answer<pb::PodSandboxStatusResponse> {
        unserved("PodSandboxStatus")
    }

    async fn list_pod_sandbox(&self, _: Request<pb::ListPodSandboxRequest>) -> Answer<pb::ListPodSandboxResponse> {
        unserved("ListPodSandbox")
    }

    async fn stream_pod_sandboxes(
        &self,
        _: Request<pb::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        unserved("StreamPodSandboxes")
    }

    async fn create_container(&self, _: Request<pb::CreateContainerRequest>) -> Answer<pb::CreateContainerResponse> {
        unserved("CreateContainer")
    }

    async fn start_container(&self, _: Request<pb::StartContainerRequest>) -> Answer<pb::StartContainerResponse> {
        unserved("StartContainer")
    }

    async fn stop_container(&self, _: Request<pb::StopContainerRequest>) -> Answer<pb::StopContainerResponse> {
        unserved("StopContainer")
    }

    async fn remove_container(&self, _: Request<pb::RemoveContainerRequest>) -> Answer<pb::RemoveContainerResponse> {
        unserved("RemoveContainer")
    }

    async fn list_containers(&self, _: Request<pb::ListContainersRequest>) -> Answer<pb::ListContainersResponse> {
        unserved("ListContainers")
    }

    async fn stream_containers(&self, _: Request<pb::StreamContainersRequest>) -> Answer<Self::StreamContainersStream> {
        unserved("StreamContainers")
    }

    async fn container_status(&self, _: Request<pb::ContainerStatusRequest>) -> Answer<pb::ContainerStatusResponse> {
        unserved("ContainerStatus")
    }

    async fn update_container_resources(
        &self,
        _: Request<pb::UpdateContainerResourcesRequest>,
    ) -> Answer<pb::UpdateContainerResourcesResponse> {
        unserved("UpdateContainerResources")
    }

    async fn reopen_container_log(
        &self,
        _: Request<pb::ReopenContainerLogRequest>,
    ) -> Answer<pb::ReopenContainerLogResponse> {
        unserved("ReopenContainerLog")
    }

    async fn exec_sync(&self, _: Request<pb::ExecSyncRequest>) -> Answer<pb::ExecSyncResponse> {
        unserved("ExecSync")
    }

    async fn exec(&self, _: Request<pb::ExecRequest>) -> Answer<pb::ExecResponse> {
        unserved("Exec")
    }

    async fn attach(&self, _: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        unserved("Attach")
    }

    async fn port_forward(&self, _: Request<pb::PortForwardRequest>) -> Answer<pb::PortForwardResponse> {
        unserved("PortForward")
    }

    async fn container_stats(&self, _: Request<pb::ContainerStatsRequest>) -> Answer<pb::ContainerStatsResponse> {
        unserved("ContainerStats")
    }

    async fn list_container_stats(
        &self,
        _: Request<pb::ListContainerStatsRequest>,
    ) -> Answer<pb::ListContainerStatsResponse> {
        unserved("ListContainerStats")
    }

    async fn stream_container_stats(
        &self,
        _: Request<pb::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        unserved("StreamContainerStats")
    }

    async fn pod_sandbox_stats(&self, _: Request<pb::PodSandboxStatsRequest>) -> Answer<pb::PodSandboxStatsResponse> {
        unserved("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<pb::ListPodSandboxStatsRequest>,
    ) -> Answer<pb::ListPodSandboxStatsResponse> {
        unserved("ListPodSandboxStats")
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<pb::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        unserved("StreamPodSandboxStats")
    }

    async fn update_runtime_config(
        &self,
        _: Request<pb::UpdateRuntimeConfigRequest>,
    ) -> Answer<pb::UpdateRuntimeConfigResponse> {
        unserved("UpdateRuntimeConfig")
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        Ok(Response::new(Cri::status(self).await))
    }

    async fn checkpoint_container(
        &self,
        _: Request<pb::CheckpointContainerRequest>,
    ) -> Answer<pb::CheckpointContainerResponse> {
        unserved("CheckpointContainer")
    }

    async fn get_container_events(&self, _: Request<pb::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        unserved("GetContainerEvents")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<pb::ListMetricDescriptorsRequest>,
    ) -> Answer<pb::ListMetricDescriptorsResponse> {
        unserved("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<pb::ListPodSandboxMetricsRequest>,
    ) -> Answer<pb::ListPodSandboxMetricsResponse> {
        unserved("ListPodSandboxMetrics")
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<pb::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        unserved("StreamPodSandboxMetrics")
    }

    async fn runtime_config(&self, _: Request<pb::RuntimeConfigRequest>) -> Answer<pb::RuntimeConfigResponse> {
        Ok(Response::new(Cri::runtime_config(self)))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<pb::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<pb::UpdatePodSandboxResourcesResponse> {
        unserved("UpdatePodSandboxResources")
    }
}
