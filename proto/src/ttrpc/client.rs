//! Many calls at once on one connection: the manager's way to a shim.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use super::frame::{self, Decoder};
use super::{Code, Error, answer, request};

type Answer = Result<Vec<u8>, Error>;

/// A connection. Clones share it; when it is lost, every call that waits ends with `Unavailable`.
#[derive(Clone)]
pub struct Client {
    writer: Arc<tokio::sync::Mutex<Writer>>,
    waiting: Arc<Mutex<Waiting>>,
    lost: watch::Receiver<bool>,
}

struct Writer {
    half: OwnedWriteHalf,
    stream: u32,
}

#[derive(Default)]
struct Waiting {
    calls: HashMap<u32, oneshot::Sender<Answer>>,
    lost: bool,
}

impl Client {
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(path: &Path) -> std::io::Result<Client> {
        let (reader, half) = UnixStream::connect(path).await?.into_split();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (tell, lost) = watch::channel(false);
        tokio::spawn(receive(reader, waiting.clone(), tell));
        Ok(Client { writer: Arc::new(tokio::sync::Mutex::new(Writer { half, stream: 1 })), waiting, lost })
    }

    /// # Errors
    /// The peer's, or `Unavailable` if it cannot be reached any more.
    pub async fn call<R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        message: &impl Message,
        namespace: &str,
    ) -> Result<R, Error> {
        let gone = || Error::new(Code::Unavailable, format!("calling {service}.{method}: the connection was closed"));
        let data = request(service, method, message.encode_to_vec(), namespace);
        let (answered, answer) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            let stream = writer.stream;
            writer.stream += 2;
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if waiting.lost {
                    return Err(gone());
                }
                waiting.calls.insert(stream, answered);
            }
            writer.half.write_all(&frame::encode(stream, frame::REQUEST, &data)).await.map_err(|_| gone())?;
        }
        let payload = answer.await.map_err(|_| gone())??;
        R::decode(payload.as_slice())
            .map_err(|error| Error::new(Code::Internal, format!("reading the answer of {service}.{method}: {error}")))
    }

    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Returns when the connection is lost.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // An error means that the sender is gone, and with it the connection.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}

async fn receive(mut reader: OwnedReadHalf, waiting: Arc<Mutex<Waiting>>, tell: watch::Sender<bool>) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        decoder.push(&buffer[..length]);
        while let Some(next) = decoder.take() {
            let (stream, answer) = match next {
                Ok(frame) if frame.kind == frame::RESPONSE => (frame.stream, answer(&frame.data)),
                Ok(_) => continue,
                Err(long) => (long.stream, Err(Error::new(Code::ResourceExhausted, "the answer is too long"))),
            };
            let call = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).calls.remove(&stream);
            if let Some(call) = call {
                let _ = call.send(answer); // whoever asked may have given up
            }
        }
    }
    let mut waiting = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    waiting.lost = true;
    waiting.calls.clear(); // dropping the senders ends every call that waits
    let _ = tell.send(true);
}
