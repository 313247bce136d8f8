//! One call after another on a connection of one's own.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::frame::{self, Decoder};
use super::{Code, Error, answer, request};

pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    stream: u32,
}

impl Client {
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, timeout: Duration) -> std::io::Result<Client> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Client { socket, decoder: Decoder::default(), stream: 1 })
    }

    /// # Errors
    /// The peer's, or `Unavailable` if it cannot be reached any more.
    pub fn call(&mut self, service: &str, method: &str, payload: Vec<u8>, namespace: &str) -> Result<Vec<u8>, Error> {
        let unavailable =
            |error: std::io::Error| Error::new(Code::Unavailable, format!("calling {service}.{method}: {error}"));
        let stream = self.stream;
        self.stream += 2;
        let frame = frame::encode(stream, frame::REQUEST, &request(service, method, payload, namespace));
        self.socket.write_all(&frame).map_err(unavailable)?;
        let mut buffer = [0; 4096];
        loop {
            while let Some(next) = self.decoder.take() {
                if let Ok(frame) = next
                    && frame.stream == stream
                    && frame.kind == frame::RESPONSE
                {
                    return answer(&frame.data);
                }
            }
            match self.socket.read(&mut buffer).map_err(unavailable)? {
                0 => {
                    return Err(Error::new(
                        Code::Unavailable,
                        format!("calling {service}.{method}: the connection was closed"),
                    ));
                }
                length => self.decoder.push(&buffer[..length]),
            }
        }
    }
}
