//! From a request to a service's method, and back.

use std::rc::Rc;

use prost::Message;
use tare_proto::ttrpc::server::unknown;
use tare_proto::ttrpc::{Code, Error};
use tare_proto::wire::Request;

use crate::connection::Connection;
use crate::task::Supervisor;

impl Supervisor {
    /// Does what a request asks for.
    ///
    /// # Errors
    /// What the client is told instead of an answer.
    pub async fn call(self: &Rc<Self>, request: &Request, from: &Connection) -> Result<Vec<u8>, Error> {
        let (method, message) = (request.method.as_str(), request.payload.as_slice());
        match request.service.as_str() {
            // Their messages are the same, only the package's name differs.
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => self.call_task(method, message, from).await,
            "containerd.runtime.sandbox.v1.Sandbox" => self.call_sandbox(method, message, from).await,
            "tare.shim.v1.Logs" => self.call_logs(method, message).await,
            service => Err(unknown("service", service)),
        }
    }
}

pub fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::new(Code::InvalidArgument, format!("reading the request: {error}")))
}

pub fn answer(result: Result<impl Message, Error>) -> Result<Vec<u8>, Error> {
    result.map(|message| message.encode_to_vec())
}
