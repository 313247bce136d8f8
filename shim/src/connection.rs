//! One client's connection: bytes in, requests out, answers back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use tare_proto::ttrpc::frame::{self, Decoder, Frame};
use tare_proto::ttrpc::{Code, Error, response};

/// Whom to answer: a connection and the call on it. The client may be gone by then.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    pub connection: u64,
    pub stream: u32,
}

pub struct Connection {
    pub socket: UnixStream,
    decoder: Decoder,
    /// Answers that the client has not taken yet.
    outgoing: Vec<u8>,
}

/// A client that lets this much of its answers lie is cut off.
const PATIENCE: usize = 16 << 20;

impl Connection {
    /// Takes a client in, if it is of the same user as we are.
    ///
    /// # Errors
    /// It is not, or the socket is broken.
    pub fn accept(socket: UnixStream) -> std::io::Result<Connection> {
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(std::io::Error::from(ErrorKind::PermissionDenied));
        }
        socket.set_nonblocking(true)?;
        Ok(Connection { socket, decoder: Decoder::default(), outgoing: Vec::new() })
    }

    /// Reads what has arrived; gives the requests that are whole, or none if the client is gone.
    pub fn receive(&mut self) -> Option<Vec<Frame>> {
        let mut buffer = [0; 4096];
        let mut requests = Vec::new();
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(requests),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return None,
            }
            while let Some(next) = self.decoder.take() {
                match next {
                    Ok(frame) if frame.kind == frame::REQUEST => requests.push(frame),
                    Ok(_) => {} // of a kind that later versions may have
                    Err(long) => {
                        let text = format!(
                            "message length {} exceeds maximum message size of {}",
                            long.length,
                            frame::LONGEST
                        );
                        self.send(long.stream, Err(Error::new(Code::ResourceExhausted, text)));
                    }
                }
            }
        }
    }

    /// Sends an answer, or as much of it as the client takes now.
    pub fn send(&mut self, stream: u32, answer: Result<Vec<u8>, Error>) {
        self.outgoing.extend(frame::encode(stream, frame::RESPONSE, &response(answer)));
        self.flush();
    }

    /// Sends what is left over.
    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break, // full: the loop comes back when there is room; broken: reading finds out
            }
        }
    }

    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub fn is_stuck(&self) -> bool {
        self.outgoing.len() > PATIENCE
    }
}
