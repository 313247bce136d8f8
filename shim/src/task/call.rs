//! The methods of the Task service, by name.

use std::rc::Rc;

use tare_proto::ttrpc::Error;
use tare_proto::ttrpc::server::unknown;

use super::Supervisor;
use crate::connection::Connection;
use crate::service::{answer, read};

impl Supervisor {
    pub(crate) async fn call_task(
        self: &Rc<Self>,
        method: &str,
        message: &[u8],
        from: &Connection,
    ) -> Result<Vec<u8>, Error> {
        match method {
            "Create" => answer(Box::pin(self.create(read(message)?)).await),
            "Start" => answer(Box::pin(self.start(read(message)?)).await),
            "Exec" => answer(self.exec(read(message)?)),
            "Delete" => answer(Box::pin(self.delete(read(message)?)).await),
            "Kill" => answer(self.kill(read(message)?).await),
            "Wait" => answer(self.wait(read(message)?, from).await),
            "State" => answer(self.state(&read(message)?)),
            "Pids" => answer(self.pids(read(message)?).await),
            "Stats" => answer(self.stats(&read(message)?)),
            "Connect" => answer(self.connect(&read(message)?)),
            "Pause" => answer(self.pause(read(message)?).await),
            "Resume" => answer(self.resume(read(message)?).await),
            "Update" => answer(self.update(read(message)?).await),
            "ResizePty" => answer(self.resize_pty(&read(message)?)),
            "CloseIO" => answer(self.close_io(&read(message)?)),
            "Shutdown" => answer(self.shutdown(&read(message)?)),
            "Checkpoint" => answer(Box::pin(self.checkpoint(read(message)?)).await),
            method => Err(unknown("method", method)),
        }
    }
}
