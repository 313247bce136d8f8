//! SPDY/3.1, the server's side, as far as Kubernetes' clients use it: the client opens streams, each with a few headers.
//!
//! There are no windows: Go's implementation, which is the only one that is met, neither keeps nor grants any, and would
//! wait for ever on a server that insisted. What bounds a stream is its pipe in memory and, behind it, TCP.
//!
//! Source: SPDY Protocol, draft 3.1; moby/spdystream.

mod dictionary;
pub mod frame;
pub mod header;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use super::session::{Activity, Session};
use frame::{Answer, Control, Head, PIECE};
use header::{Deflater, Headers, Inflater};

/// Streams that are open at once on one connection.
const MOST: usize = 512;
/// Bytes of a stream that wait in memory, in each direction.
pub(super) const PIPE: usize = 64 << 10;
/// Frames that wait to be written.
const QUEUE: usize = 16;

/// The client does not speak SPDY as it should: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

/// A stream that the client opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub io: DuplexStream,
    /// Ends when all that was written to `io`, and its end, is on its way.
    pub flushed: JoinHandle<()>,
}

/// Serves a connection; its streams come out of the channel, which ends when the client goes.
///
/// # Errors
/// The compressor cannot be had.
pub fn serve(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<(Session, mpsc::Receiver<Stream>), Broken> {
    let (from, to) = tokio::io::split(io);
    let (answers, queue) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(1);
    let activity = Activity::now();
    let reader = Reader {
        from,
        inflater: Inflater::default(),
        answers: answers.downgrade(),
        opened,
        inputs: HashMap::new(),
        last: 0,
        room: Arc::new(Semaphore::new(MOST)),
        activity: activity.clone(),
    };
    let read = async move {
        if let Err(Broken(why)) = reader.run().await {
            tracing::debug!("a streaming client: {why}");
        }
    };
    let write = write(to, queue, Deflater::new()?, activity.clone());
    Ok((Session::new(read, write, answers, activity), streams))
}

/// Writes answers until nobody can send any more, then says goodbye.
async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Answer>,
    mut deflater: Deflater,
    activity: Activity,
) {
    loop {
        let answer = queue.recv().await;
        let Ok(bytes) = answer.as_ref().unwrap_or(&Answer::GoAway).bytes(&mut deflater) else { return };
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return; // the queue goes with us, and whoever writes to a stream hears of it
        }
        activity.touch();
        if answer.is_none() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

struct Reader<R> {
    from: R,
    inflater: Inflater,
    answers: mpsc::WeakSender<Answer>,
    opened: mpsc::Sender<Stream>,
    /// Where a client's bytes go, until it says that there are no more; and who sends the answers to them.
    inputs: HashMap<u32, (WriteHalf<DuplexStream>, AbortHandle)>,
    last: u32,
    room: Arc<Semaphore>,
    activity: Activity,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads frames to the end of the connection, which is the end of every stream.
    async fn run(mut self) -> Result<(), Broken> {
        let outcome = self.frames().await;
        for (mut input, _) in std::mem::take(&mut self.inputs).into_values() {
            let _ = input.shutdown().await; // dropped alone, it would leave its reader waiting
        }
        outcome
    }

    async fn frames(&mut self) -> Result<(), Broken> {
        loop {
            let mut head = [0; Head::LENGTH];
            if self.from.read_exact(&mut head).await.is_err() {
                return Ok(()); // the client has gone
            }
            self.activity.touch();
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length];
                    self.from.read_exact(&mut body).await.map_err(|_| Broken("a frame is cut off"))?;
                    match Control::read(kind, flags, &body, &mut self.inflater)? {
                        Control::Open { stream, headers, fin } => self.open(stream, headers, fin).await?,
                        Control::Reset { stream } => {
                            if let Some((_, pump)) = self.inputs.remove(&stream) {
                                pump.abort(); // with its half the pipe is closed, both ways
                            }
                        }
                        // The client's own have odd numbers; even ones would be answers to us, and we never ask.
                        Control::Ping { id } if !id.is_multiple_of(2) => self.answer(Answer::Ping { id }).await,
                        Control::Ping { .. } | Control::GoAway | Control::Other => {}
                    }
                }
            }
        }
    }

    /// Passes a frame's data on in pieces: it may be longer than anybody wants to hold.
    async fn data(&mut self, stream: u32, fin: bool, length: usize) -> Result<(), Broken> {
        let mut piece = vec![0; length.min(PIECE)];
        let mut rest = length;
        while rest > 0 {
            let part = &mut piece[..rest.min(PIECE)];
            self.from.read_exact(part).await.map_err(|_| Broken("a frame is cut off"))?;
            rest -= part.len();
            self.activity.touch();
            if let Some((input, _)) = self.inputs.get_mut(&stream)
                && input.write_all(part).await.is_err()
            {
                self.inputs.remove(&stream); // nobody reads it any more
            }
        }
        if fin && let Some((mut input, _)) = self.inputs.remove(&stream) {
            let _ = input.shutdown().await; // it only wakes the reader, if there still is one
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) -> Result<(), Broken> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Broken("a stream's number is not the client's next"));
        }
        self.last = id;
        let (Ok(room), Some(answers)) = (self.room.clone().try_acquire_owned(), self.answers.upgrade()) else {
            self.answer(Answer::Refuse { stream: id }).await;
            return Ok(());
        };
        self.answer(Answer::Reply { stream: id }).await;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let (output, mut input) = tokio::io::split(ours);
        let flushed = tokio::spawn(async move {
            pump(id, output, answers).await;
            drop(room);
        });
        if fin {
            let _ = input.shutdown().await; // it was made a moment ago
        } else {
            self.inputs.insert(id, (input, flushed.abort_handle()));
        }
        // If nobody wants streams any more, this one ends as soon as it is dropped.
        let _ = self.opened.send(Stream { id, headers, io: theirs, flushed }).await;
        Ok(())
    }

    async fn answer(&mut self, answer: Answer) {
        if let Some(answers) = self.answers.upgrade() {
            let _ = answers.send(answer).await; // without a writer the connection is about to end
        }
    }
}

/// Sends what is written to a stream, and its end.
async fn pump(stream: u32, mut output: ReadHalf<DuplexStream>, answers: mpsc::Sender<Answer>) {
    let mut piece = vec![0; PIECE];
    loop {
        let length = output.read(&mut piece).await.unwrap_or(0);
        let answer = Answer::Data { stream, bytes: piece[..length].to_vec(), fin: length == 0 };
        if answers.send(answer).await.is_err() || length == 0 {
            return;
        }
    }
}
