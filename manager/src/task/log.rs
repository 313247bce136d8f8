//! A shim's own log: a fifo in the bundle that the daemon reads before the shim is started.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::error::Error;

/// Reads until dropped.
pub struct Log(JoinHandle<()>);

impl Log {
    /// Makes the fifo, unless an earlier daemon did, and passes on each line.
    ///
    /// # Errors
    /// The fifo cannot be made or opened.
    pub fn follow(bundle: &Path, namespace: &str, id: &str) -> Result<Log, Error> {
        let path = bundle.join("log");
        let failed = |error: &std::io::Error| Error::io(format!("opening the shim's log {}", path.display()), error);
        match rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(failed(&errno.into())),
        }
        // For writing as well, so that it has no end while shims come and go.
        let fifo = pipe::OpenOptions::new().read_write(true).open_receiver(&path).map_err(|error| failed(&error))?;
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        Ok(Log(tokio::spawn(async move {
            let mut reader = BufReader::new(fifo);
            let mut line = Vec::new();
            while let Ok(1..) = reader.read_until(b'\n', &mut line).await {
                let text = String::from_utf8_lossy(&line);
                tracing::info!(target: "shim", %namespace, %id, "{}", text.trim_end());
                line.clear();
            }
        })))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.abort();
    }
}
