//! ReopenContainerLog: the kubelet has renamed the file, and its successor is to be begun.

use tare_proto::tare::shim::v1::ReopenRequest;

use crate::cri::Cri;
use crate::error::Result;

impl Cri {
    pub(in crate::cri) async fn reopen_log(&self, id: &str) -> Result<()> {
        let (id, task) = self.running(id)?;
        task.call_of::<()>("tare.shim.v1.Logs", "Reopen", &ReopenRequest { id: id.to_string() }).await
    }
}
