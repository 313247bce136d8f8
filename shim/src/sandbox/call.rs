//! The methods of the Sandbox service, by name.

use std::rc::Rc;

use tare_proto::ttrpc::Error;
use tare_proto::ttrpc::server::unknown;

use crate::connection::Connection;
use crate::service::{answer, read};
use crate::task::Supervisor;

impl Supervisor {
    pub(crate) async fn call_sandbox(
        self: &Rc<Self>,
        method: &str,
        message: &[u8],
        from: &Connection,
    ) -> Result<Vec<u8>, Error> {
        match method {
            "CreateSandbox" => answer(Box::pin(self.create_sandbox(read(message)?)).await),
            "StartSandbox" => answer(Box::pin(self.start_sandbox(read(message)?)).await),
            "Platform" => answer(self.platform(&read(message)?)),
            "StopSandbox" => answer(self.stop_sandbox(read(message)?).await),
            "WaitSandbox" => answer(self.wait_sandbox(read(message)?, from).await),
            "SandboxStatus" => answer(self.sandbox_status(&read(message)?)),
            "PingSandbox" => answer(self.ping_sandbox(&read(message)?)),
            "ShutdownSandbox" => answer(Box::pin(self.shutdown_sandbox(read(message)?)).await),
            "SandboxMetrics" => answer(self.sandbox_metrics(&read(message)?)),
            method => Err(unknown("method", method)),
        }
    }
}
