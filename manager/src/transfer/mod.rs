//! Images from elsewhere into our stores, and out of them.
//!
//! ```text
//! pull     registry ──┐                        ┌── registry    push
//!                     ├─▶ content ─▶ snapshots ┤
//! import   archive  ──┘        └─▶ image names └── archive     export
//! ```

mod document;
mod export;
mod held;
mod import;
mod layer;
mod names;
mod platform;
mod progress;
mod pull;
mod push;
mod unpack;
mod verify;
mod written;

use tokio::sync::watch;

pub use document::{Descriptor as Described, Document, chain_ids, diff_ids};
pub use export::Export;
pub use import::Import;
pub use names::{Extra, Names, Stored};
pub use platform::Platform;
pub use progress::{Progress, State};
pub use pull::Request;
pub use push::Push;
pub use unpack::Unpack;
pub use verify::Verifiers;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::snapshot::Snapshots;
use crate::store::Store;

/// Moves images in and out of these stores. Clones share them.
#[derive(Clone)]
pub struct Transfers {
    pub(crate) store: Store,
    pub(crate) content: Content,
    pub(crate) snapshots: Snapshots,
    /// Who is asked before a pull.
    verifiers: Option<Verifiers>,
    /// Told when the daemon ends: nobody waits for a network then.
    ending: watch::Sender<bool>,
    /// Told when whoever asked for this transfer has gone.
    unwanted: watch::Sender<bool>,
}

/// Whether the one who asked still wants it. Dropped, it says no.
pub struct Wanted(watch::Sender<bool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl Transfers {
    pub fn new(store: Store, content: Content, snapshots: Snapshots) -> Transfers {
        let (ending, unwanted) = (watch::Sender::new(false), watch::Sender::new(false));
        Transfers { store, content, snapshots, verifiers: None, ending, unwanted }
    }

    /// The same, with programs that are asked before a pull.
    #[must_use]
    pub fn verified_by(self, verifiers: Verifiers) -> Transfers {
        Transfers { verifiers: Some(verifiers), ..self }
    }

    /// Whatever waits for a network gives up, now and from now on.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// The same stores, for a transfer that ends with the answer or with the daemon.
    pub fn wanted(&self) -> (Wanted, Transfers) {
        let unwanted = watch::Sender::new(false);
        (Wanted(unwanted.clone()), Transfers { unwanted, ..self.clone() })
    }

    /// Does what waits for a network, unless nobody waits for that any more.
    async fn unless_ended<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (mut ending, mut unwanted) = (self.ending.subscribe(), self.unwanted.subscribe());
        tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => Err(Error::Unavailable("the daemon is ending".into())),
            _ = unwanted.wait_for(|unwanted| *unwanted) => Err(Error::Unavailable("the transfer was cancelled".into())),
            answer = work => answer,
        }
    }
}
