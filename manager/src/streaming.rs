//! Streams that clients open beside their calls: a request names one by its id, and gets both ends of it. Bytes go through
//! one in pieces, as many as the other side has said that it takes.
//!
//! Source: containerd plugins/services/streaming, core/transfer/streaming.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::types::transfer::{Data, WindowUpdate};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// What may wait in one direction.
pub const DEPTH: usize = 64;
/// So many streams may wait to be used.
const MOST: usize = 1024;
/// The longest piece.
const PIECE: usize = 32 << 10;
/// What a sender may have under way.
const WINDOW: i32 = 2 * (32 << 10);

const DATA: &str = "containerd.types.transfer.Data";
const UPDATE: &str = "containerd.types.transfer.WindowUpdate";

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

fn wrong(error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client's stream: {error}"))
}

/// Bytes that a client sends. For a thread that may wait.
pub struct Incoming {
    stream: Stream,
    /// What the client may still send.
    granted: i32,
    piece: Vec<u8>,
    at: usize,
}

impl Incoming {
    pub fn new(stream: Stream) -> Incoming {
        Incoming { stream, granted: 0, piece: Vec::new(), at: 0 }
    }

    fn grant(&mut self) {
        if self.granted < WINDOW {
            let update = any::pack(UPDATE, &WindowUpdate { update: WINDOW });
            // A client that has sent all has gone; what it sent is still to be read.
            let _ = self.stream.to_client.blocking_send(update);
            self.granted += WINDOW;
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            self.grant();
            let Some(message) = self.stream.from_client.blocking_recv() else { return Ok(0) };
            let data: Option<Data> = any::unpack(&message, DATA).map_err(|error| wrong(&error))?;
            if let Some(Data { data }) = data {
                self.granted = self.granted.saturating_sub(i32::try_from(data.len()).unwrap_or(i32::MAX));
                (self.piece, self.at) = (data, 0);
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Bytes for a client. For a thread that may wait; dropped, it ends the stream.
pub struct Outgoing {
    stream: Stream,
    granted: i64,
}

impl Outgoing {
    pub fn new(stream: Stream) -> Outgoing {
        Outgoing { stream, granted: 0 }
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client reads no more");
        while self.granted <= 0 {
            let message = self.stream.from_client.blocking_recv().ok_or_else(gone)?;
            let update: Option<WindowUpdate> = any::unpack(&message, UPDATE).map_err(|error| wrong(&error))?;
            self.granted += update.map_or(0, |update| i64::from(update.update));
        }
        let length = bytes.len().min(PIECE).min(usize::try_from(self.granted).unwrap_or(PIECE));
        let message = any::pack(DATA, &Data { data: bytes[..length].to_vec() });
        self.stream.to_client.blocking_send(message).map_err(|_| gone())?;
        self.granted -= length as i64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, Stream) {
        let (to_client, from_us) = mpsc::channel(2);
        let (to_us, from_client) = mpsc::channel(2);
        (Stream { to_client, from_client }, Stream { to_client: to_us, from_client: from_us })
    }

    #[test]
    fn bytes_arrive_in_order_and_never_more_than_was_granted() {
        let (one, other) = pair();
        let sent: Vec<u8> = (0..1_000_003_u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let sending = std::thread::spawn(move || Outgoing::new(one).write_all(&copy).unwrap());
        let mut received = Vec::new();
        Incoming::new(other).read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        assert!(received == sent, "{} bytes", received.len());
    }

    #[test]
    fn a_client_that_goes_away_ends_what_is_sent_to_it() {
        let (one, other) = pair();
        drop(other);
        let error = Outgoing::new(one).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
