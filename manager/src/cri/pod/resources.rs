//! UpdatePodSandboxResources: what the kubelet has made of the pod's own cgroup. It is kept and shown; the limits
//! themselves are the kubelet's work.

use tare_proto::runtime::v1 as pb;

use crate::cri::Cri;
use crate::error::Result;

impl Cri {
    pub(in crate::cri) async fn update_pod(&self, request: pb::UpdatePodSandboxResourcesRequest) -> Result<()> {
        let pod = self.pods.find(&request.pod_sandbox_id)?;
        pod.change(move |row| {
            (row.overhead, row.resources) = (request.overhead, request.resources);
            Ok(())
        })
        .await?;
        Ok(())
    }
}
