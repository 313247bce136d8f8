//! A client's connection, once it is upgraded: a task that reads, a task that writes, and how both end.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// A connection on which nothing has moved for so long is closed, as kubelets expect.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a client may take to hear the end.
const GOODBYE: Duration = Duration::from_secs(10);

/// When something moved last.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub fn now() -> Activity {
        Activity(Arc::new(Mutex::new(Instant::now())))
    }

    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) + IDLE
    }
}

/// Both tasks end with it.
pub struct Session {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    /// While somebody holds one of these, the writer goes on.
    open: Option<Box<dyn Send + Sync>>,
    activity: Activity,
}

impl Session {
    pub fn new(
        reader: impl Future<Output = ()> + Send + 'static,
        writer: impl Future<Output = ()> + Send + 'static,
        open: impl Send + Sync + 'static,
        activity: Activity,
    ) -> Session {
        let (reader, writer) = (tokio::spawn(reader), tokio::spawn(writer));
        Session { reader, writer, open: Some(Box::new(open)), activity }
    }

    /// Returns when the client has gone, or nothing has moved for hours.
    pub async fn gone(&mut self) {
        while !self.reader.is_finished() {
            let end = self.activity.end();
            tokio::select! {
                _ = &mut self.reader => return,
                () = sleep_until(end) => if self.activity.end() <= Instant::now() { return },
            }
        }
    }

    /// Ends the connection when everything that is on its way was written, and the client has seen it.
    pub async fn close(mut self) {
        self.open = None;
        let _ = timeout(GOODBYE, &mut self.writer).await;
        if !self.reader.is_finished() {
            // Closing with bytes unread would reset the connection, and the client might lose our last ones.
            let _ = timeout(GOODBYE, &mut self.reader).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}
