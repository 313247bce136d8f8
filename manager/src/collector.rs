//! When the collector runs: at start, some time after something was removed, or at once when a client waits for it.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::gc;
use crate::snapshot::Snapshots;
use crate::store::Store;

/// Clones share the one that runs: two never run at once.
#[derive(Clone)]
pub struct Collector {
    store: Store,
    content: Content,
    snapshots: Snapshots,
    wanted: Arc<Notify>,
    running: Arc<tokio::sync::Mutex<()>>,
}

impl Collector {
    pub fn new(store: Store, content: Content, snapshots: Snapshots) -> Collector {
        Collector { store, content, snapshots, wanted: Arc::default(), running: Arc::default() }
    }

    /// Collects whenever it is asked to, until the future is dropped. Many wishes during a run are one.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.now().await {
                tracing::error!("collecting garbage: {error}");
            }
            self.wanted.notified().await;
        }
    }

    /// After something was removed: waits for a collection if the client asks for that, else one follows.
    ///
    /// # Errors
    /// What kept the collection from its end.
    pub async fn after(&self, wait: bool) -> Result<()> {
        if wait {
            return self.now().await;
        }
        self.wanted.notify_one();
        Ok(())
    }

    async fn now(&self) -> Result<()> {
        let _running = self.running.lock().await;
        let own = self.clone();
        tokio::task::spawn_blocking(move || gc::collect(&own.store, &own.content, &own.snapshots))
            .await
            .map_err(|error| Error::Internal(format!("collecting garbage: {error}")))?
    }
}
