//! From a request to a method and back.

use std::rc::Rc;

use prost::Message;
use tare_proto::ttrpc::server::unknown;
use tare_proto::ttrpc::{Code, Error};
use tare_proto::wire::Request;

use super::{Supervisor, invalid};
use crate::connection::Connection;

const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

impl Supervisor {
    /// Does what a request asks for.
    ///
    /// # Errors
    /// What the client is told instead of an answer.
    pub async fn call(self: &Rc<Self>, request: &Request, from: &Connection) -> Result<Vec<u8>, Error> {
        if !SERVICES.contains(&request.service.as_str()) {
            return Err(unknown("service", &request.service));
        }
        let message = request.payload.as_slice();
        match request.method.as_str() {
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
            "Checkpoint" => Err(Error::new(Code::Unimplemented, "checkpoint is not supported")),
            method => Err(unknown("method", method)),
        }
    }
}

fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| invalid(format!("reading the request: {error}")))
}

fn answer(result: Result<impl Message, Error>) -> Result<Vec<u8>, Error> {
    result.map(|message| message.encode_to_vec())
}
