//! The service `tare.shim.v1.Logs`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::rc::Rc;

use rustix::fs::OFlags;
use tare_proto::tare::shim::v1::{AttachRequest, ReopenRequest};
use tare_proto::ttrpc::Error;
use tare_proto::ttrpc::server::unknown;

use super::Log;
use crate::error::{Doing as _, Failed};
use crate::service::{answer, read};
use crate::task::{Supervisor, precondition};

impl Supervisor {
    pub(crate) async fn call_logs(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Error> {
        match method {
            "Reopen" => answer(self.reopen_logs(read(message)?).await),
            "Attach" => answer(self.attach(read(message)?).await),
            method => Err(unknown("method", method)),
        }
    }

    async fn reopen_logs(&self, request: ReopenRequest) -> Result<(), Error> {
        let logs = self.logs_of(&request.id)?;
        if logs.is_empty() {
            return Err(no_log(&request.id));
        }
        for log in logs {
            log.reopen().await?;
        }
        Ok(())
    }

    async fn attach(&self, request: AttachRequest) -> Result<(), Error> {
        let log: Rc<Log> = self.log_of(&request.id, &request.exec_id)?.ok_or_else(|| no_log(&request.id))?;
        let (output, error) = (fifo(&request.stdout)?, fifo(&request.stderr)?);
        Ok(log.follow(output.as_ref(), error.as_ref()).await?)
    }
}

fn no_log(id: &str) -> Error {
    precondition(format!("the output of {id} does not go to cri://: failed precondition"))
}

/// The caller reads it already, or it could not be opened for writing: fifo(7).
fn fifo(path: &str) -> Result<Option<OwnedFd>, Failed> {
    if path.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().write(true).custom_flags(flags).open(path);
    Ok(Some(file.doing(|| format!("opening the fifo {path}"))?.into()))
}
