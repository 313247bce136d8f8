//! WebSocket as Kubernetes uses it: a channel's number and its bytes in each message; or, for ports, SPDY within.
//!
//! Source: RFC 6455; kubernetes/streaming pkg/httpstream/wsstream; kubectl's remotecommand (`v5.channel.k8s.io`).

pub mod frame;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::session::{Activity, Session};
use super::spdy::PIPE;
use super::spdy::frame::PIECE;
use frame::{Broken, Kind, Message, Messages};

const QUEUE: usize = 16;
/// In `v5` the first byte of a message that ends the channel named by the second.
const END_OF: u8 = 255;

/// How bytes are put into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Binary,
    /// The channel as a digit, then Base64.
    Base64,
}

/// A channel of a connection.
pub struct Channel {
    pub io: DuplexStream,
    /// Ends when what was written to it is on its way.
    pub flushed: JoinHandle<()>,
}

/// The answer to `Sec-WebSocket-Key`.
///
/// Source: RFC 6455, section 4.2.2.
pub fn accept(key: &str) -> String {
    BASE64_STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")))
}

/// Serves a connection with so many channels. On `hello` an empty message tells the client that it is connected.
pub fn channels(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    coding: Coding,
    count: u8,
    hello: Option<u8>,
) -> (Session, Vec<Channel>) {
    let (from, to) = tokio::io::split(io);
    let (messages, queue) = mpsc::channel(QUEUE);
    if let Some(hello) = hello {
        let _ = messages.try_send(coding.encode(hello, &[])); // the queue is empty
    }
    let activity = Activity::now();
    let (mut inputs, mut all) = (Vec::new(), Vec::new());
    for number in 0..count {
        let (ours, io) = tokio::io::duplex(PIPE);
        let (output, input) = tokio::io::split(ours);
        inputs.push(Some(input));
        all.push(Channel { io, flushed: tokio::spawn(pump(number, coding, output, messages.clone())) });
    }
    let (weak, moved) = (messages.downgrade(), activity.clone());
    let read = async move {
        if let Err(Broken(why)) = demultiplex(from, coding, inputs, weak, moved).await {
            tracing::debug!("a streaming client: {why}");
        }
    };
    let session = Session::new(read, write(to, queue, activity.clone()), messages, activity);
    (session, all)
}

/// Bytes as they are, in binary messages: what the other end of the pipe gets is the tunnel's inside.
pub fn tunnel(io: impl AsyncRead + AsyncWrite + Send + 'static) -> DuplexStream {
    let (from, to) = tokio::io::split(io);
    let (ours, inside) = tokio::io::duplex(PIPE);
    let (mut output, mut input) = tokio::io::split(ours);
    let (messages, queue) = mpsc::channel(QUEUE);
    let activity = Activity::now();
    let answers = messages.downgrade();
    // Whoever serves the inside knows when it is idle, and both tasks end with it, or with the client.
    tokio::spawn(write(to, queue, activity));
    tokio::spawn(async move {
        let mut messages = Messages::new(from);
        while let Ok(Some(message)) = messages.next().await {
            match message.kind {
                Kind::Binary if input.write_all(&message.bytes).await.is_ok() => {}
                Kind::Ping => answer_ping(&answers, message.bytes).await,
                Kind::Pong => {}
                _ => break,
            }
        }
        let _ = input.shutdown().await; // nobody may be there to hear it
    });
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = output.read(&mut piece).await {
            let message = Message { kind: Kind::Binary, bytes: piece[..length].to_vec() };
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    inside
}

async fn demultiplex(
    from: impl AsyncRead + Unpin,
    coding: Coding,
    mut inputs: Vec<Option<WriteHalf<DuplexStream>>>,
    answers: mpsc::WeakSender<Message>,
    activity: Activity,
) -> Result<(), Broken> {
    let mut messages = Messages::new(from);
    while let Some(message) = messages.next().await? {
        activity.touch();
        match message.kind {
            Kind::Text | Kind::Binary => {
                let bytes = coding.decode(message.bytes)?;
                match bytes.split_first() {
                    Some((&END_OF, &[channel])) => {
                        if let Some(mut input) = inputs.get_mut(usize::from(channel)).and_then(Option::take) {
                            let _ = input.shutdown().await; // it only wakes the reader, if there still is one
                        }
                    }
                    Some((&channel, bytes)) => {
                        let slot = inputs.get_mut(usize::from(channel)).ok_or(Broken("no such channel"))?;
                        if let Some(input) = slot
                            && input.write_all(bytes).await.is_err()
                        {
                            *slot = None; // nobody reads it any more
                        }
                    }
                    None => {}
                }
            }
            Kind::Ping => answer_ping(&answers, message.bytes).await,
            Kind::Pong => {}
            Kind::Close => return Ok(()),
        }
    }
    Ok(())
}

async fn answer_ping(answers: &mpsc::WeakSender<Message>, bytes: Vec<u8>) {
    if let Some(answers) = answers.upgrade() {
        let _ = answers.send(Message { kind: Kind::Pong, bytes }).await; // without a writer the connection ends
    }
}

/// Sends what is written to a channel. Channels towards the client end with the connection only.
async fn pump(number: u8, coding: Coding, mut output: ReadHalf<DuplexStream>, messages: mpsc::Sender<Message>) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = output.read(&mut piece).await {
        if messages.send(coding.encode(number, &piece[..length])).await.is_err() {
            return;
        }
    }
}

/// Writes messages until nobody can send any more, then closes.
async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Message>, activity: Activity) {
    const NORMAL: u16 = 1000;
    while let Some(message) = queue.recv().await {
        if to.write_all(&message.frame()).await.is_err() || to.flush().await.is_err() {
            return;
        }
        activity.touch();
    }
    let goodbye = Message { kind: Kind::Close, bytes: NORMAL.to_be_bytes().to_vec() };
    if to.write_all(&goodbye.frame()).await.is_ok() {
        let _ = to.shutdown().await;
    }
}

impl Coding {
    pub(super) fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Coding::Binary => Message { kind: Kind::Binary, bytes: [&[channel], bytes].concat() },
            Coding::Base64 => {
                let text = format!("{}{}", char::from(b'0' + channel), BASE64_STANDARD.encode(bytes));
                Message { kind: Kind::Text, bytes: text.into_bytes() }
            }
        }
    }

    fn decode(self, mut bytes: Vec<u8>) -> Result<Vec<u8>, Broken> {
        if self == Coding::Binary || bytes.is_empty() {
            return Ok(bytes);
        }
        let channel = bytes[0].checked_sub(b'0').ok_or(Broken("no such channel"))?;
        bytes = BASE64_STANDARD.decode(&bytes[1..]).map_err(|_| Broken("a message is not Base64"))?;
        bytes.insert(0, channel);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn base64_messages_name_their_channel_by_a_digit() {
        let message = Coding::Base64.encode(1, b"hi\n");
        assert_eq!((message.kind, message.bytes.as_slice()), (Kind::Text, &b"1aGkK"[..]));
        assert_eq!(Coding::Base64.decode(message.bytes).unwrap(), b"\x01hi\n");
        assert!(Coding::Base64.decode(b"0?".to_vec()).is_err());
    }
}
