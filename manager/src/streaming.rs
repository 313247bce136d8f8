//! Streams that clients open beside their calls: a request names one by its id, and gets both ends of it.
//!
//! Source: containerd plugins/services/streaming.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prost_types::Any;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// What may wait in one direction.
pub const DEPTH: usize = 64;
/// So many streams may wait to be used.
const MOST: usize = 1024;

/// Our ends of a client's stream.
pub struct Stream {
    pub to_client: mpsc::Sender<Any>,
    pub from_client: mpsc::Receiver<Any>,
}

/// Streams that nobody has used yet.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<(String, String), Stream>>>);

impl Streams {
    /// # Errors
    /// `AlreadyExists`; `ResourceExhausted` too many wait.
    pub fn register(&self, namespace: &str, id: &str, stream: Stream) -> Result<()> {
        if id.is_empty() {
            return Err(Error::InvalidArgument("a stream needs an id".into()));
        }
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, stream| !stream.to_client.is_closed()); // their clients are gone
        if streams.len() >= MOST {
            return Err(Error::ResourceExhausted(format!("{MOST} streams wait to be used")));
        }
        let key = (namespace.to_owned(), id.to_owned());
        if streams.contains_key(&key) {
            return Err(Error::AlreadyExists(format!("stream {id}")));
        }
        streams.insert(key, stream);
        Ok(())
    }

    /// Takes a stream to use it; nobody else can.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn take(&self, namespace: &str, id: &str) -> Result<Stream> {
        let taken =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.to_owned(), id.to_owned()));
        taken.ok_or_else(|| Error::NotFound(format!("stream {id}")))
    }
}
