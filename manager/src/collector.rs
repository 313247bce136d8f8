//! When the collector runs: some time after the start, some time after something was removed, or at once when a client
//! waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tare_proto::containerd::events::SnapshotRemove;
use tare_proto::containerd::services::images::v1::ImageDelete;
use tokio::sync::Notify;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::event::Exchange;
use crate::gc::{self, Gone};
use crate::metrics::Metrics;
use crate::snapshot::Snapshots;
use crate::store::Store;

/// When it runs without being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// From the daemon's start.
    pub startup_delay: Duration,
    /// From a removal: what is removed until then is collected in one go.
    pub delay: Duration,
}

/// Clones share the one that runs: two never run at once.
#[derive(Clone)]
pub struct Collector {
    store: Store,
    content: Content,
    snapshots: Snapshots,
    events: Exchange,
    schedule: Schedule,
    metrics: Metrics,
    wanted: Arc<Notify>,
    running: Arc<tokio::sync::Mutex<()>>,
}

impl Collector {
    pub fn new(
        store: Store,
        content: Content,
        snapshots: Snapshots,
        events: Exchange,
        schedule: Schedule,
        metrics: Metrics,
    ) -> Collector {
        let (wanted, running) = (Arc::default(), Arc::default());
        Collector { store, content, snapshots, events, schedule, metrics, wanted, running }
    }

    /// Collects whenever it is asked to, until the future is dropped. Many wishes during a run are one.
    pub async fn run(self) {
        tokio::time::sleep(self.schedule.startup_delay).await;
        let content = self.content.clone();
        // What a daemon that was killed left without a row; afterwards the collector knows what goes.
        match tokio::task::spawn_blocking(move || content.sweep_blobs()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("sweeping blobs: {error}"),
            Err(error) => tracing::error!("sweeping blobs: {error}"),
        }
        loop {
            if let Err(error) = self.now().await {
                tracing::error!("collecting garbage: {error}");
            }
            self.wanted.notified().await;
            tokio::time::sleep(self.schedule.delay).await;
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
        let (own, began) = (self.clone(), Instant::now());
        let gone = tokio::task::spawn_blocking(move || gc::collect(&own.store, &own.content, &own.snapshots))
            .await
            .map_err(|error| Error::Internal(format!("collecting garbage: {error}")))??;
        let removed = [("images", gone.images.len()), ("snapshots", gone.snapshots.len()), ("blobs", gone.blobs)];
        self.metrics.collected(began.elapsed(), removed);
        self.tell(gone)
    }

    fn tell(&self, gone: Gone) -> Result<()> {
        for (namespace, name) in gone.images {
            self.events.tell(&namespace, "/images/delete", &ImageDelete { name })?;
        }
        for (namespace, snapshotter, key) in gone.snapshots {
            self.events.tell(&namespace, "/snapshot/remove", &SnapshotRemove { key, snapshotter })?;
        }
        Ok(())
    }
}
