//! Events on their way to the daemon: strictly in order, kept while it is away, each delivered once it has answered.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use tare_proto::any;
use tare_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use tare_proto::containerd::types::Envelope;
use tare_proto::ttrpc::frame::{self, Decoder};
use tare_proto::ttrpc::request;

/// So many events are kept; then the oldest goes, since a daemon that is away for so long asks for states anyway.
const KEPT: usize = 4096;
/// How long between two attempts to reach the daemon.
const PAUSE: Duration = Duration::from_millis(500);

pub struct Publisher {
    path: String,
    namespace: String,
    waiting: VecDeque<Vec<u8>>,
    connection: Option<Link>,
    next_attempt: Option<Instant>,
}

struct Link {
    socket: UnixStream,
    decoder: Decoder,
    outgoing: Vec<u8>,
    stream: u32,
    in_flight: bool,
}

impl Publisher {
    pub fn new(path: String, namespace: String) -> Publisher {
        Publisher { path, namespace, waiting: VecDeque::new(), connection: None, next_attempt: None }
    }

    /// Puts an event behind those that wait.
    pub fn publish(&mut self, topic: &str, name: &str, event: &impl Message) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: Some(any::pack(&format!("containerd.events.{name}"), event)),
        };
        if self.waiting.len() == KEPT {
            self.waiting.pop_front();
        }
        self.waiting.push_back(ForwardRequest { envelope: Some(envelope) }.encode_to_vec());
        self.advance();
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The socket to watch, and whether there is something to write.
    pub fn socket(&self) -> Option<(&UnixStream, bool)> {
        self.connection.as_ref().map(|link| (&link.socket, !link.outgoing.is_empty()))
    }

    /// How long until something has to be tried again.
    pub fn timeout(&self) -> Option<Duration> {
        self.next_attempt.filter(|_| !self.waiting.is_empty()).map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Goes on as far as it goes without waiting.
    pub fn advance(&mut self) {
        if self.path.is_empty() {
            self.waiting.clear(); // no daemon has asked for events
            return;
        }
        if self.connection.is_none()
            && !self.waiting.is_empty()
            && self.next_attempt.is_none_or(|at| at <= Instant::now())
        {
            self.connection = connect(&self.path);
            self.next_attempt = Some(Instant::now() + PAUSE);
        }
        if self.exchange().is_err() {
            self.connection = None; // what was in flight is still the first to wait, and is sent again
            self.next_attempt = Some(Instant::now() + PAUSE);
        }
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        let Some(link) = &mut self.connection else { return Ok(()) };
        loop {
            if !link.in_flight
                && let Some(event) = self.waiting.front()
            {
                let data =
                    request("containerd.services.events.ttrpc.v1.Events", "Forward", event.clone(), &self.namespace);
                link.outgoing.extend(frame::encode(link.stream, frame::REQUEST, &data));
                link.in_flight = true;
            }
            link.write()?;
            if !link.read()? {
                return Ok(());
            }
            while let Some(next) = link.decoder.take() {
                let answered = next.is_ok_and(|frame| frame.stream == link.stream && frame.kind == frame::RESPONSE);
                if answered {
                    // A refusal is an answer too: the same event would be refused again.
                    self.waiting.pop_front();
                    link.stream += 2;
                    link.in_flight = false;
                }
            }
        }
    }
}

fn connect(path: &str) -> Option<Link> {
    let socket = UnixStream::connect(path).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(Link { socket, decoder: Decoder::default(), outgoing: Vec::new(), stream: 1, in_flight: false })
}

impl Link {
    fn write(&mut self) -> std::io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether something has arrived.
    fn read(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.decoder.push(&buffer[..length]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
