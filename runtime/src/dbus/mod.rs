//! As much of D-Bus as it takes to ask systemd for something: one connection, calls one after another, and the signals that
//! come meanwhile.
//!
//! A client library for D-Bus brings an executor and half a megabyte along; what is needed here is a header, a body and
//! their alignment.
//!
//! Source: D-Bus Specification, "Message Protocol" and "Authentication Protocol".

mod text;
mod value;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

pub use text::read as read_text;
pub use value::Value;
use value::{decode, pad};

/// How long the other side may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// What no message of systemd's comes near to.
const LARGEST: usize = 1 << 24;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no D-Bus socket answers: tried {0}")]
    Unreachable(String),
    #[error("talking to systemd over D-Bus: {0}")]
    Lost(String),
    #[error("{method}: {message} ({name})")]
    Refused { method: String, name: String, message: String },
}

impl Error {
    /// Whether systemd answered with the error of this name.
    pub fn is(&self, known: &str) -> bool {
        matches!(self, Error::Refused { name, .. } if name == known)
    }
}

/// Where a message goes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
}

/// Something that was told without being asked.
#[derive(Debug)]
pub struct Signal {
    pub member: String,
    pub body: Vec<Value>,
}

pub struct Connection {
    stream: UnixStream,
    serial: u32,
    signals: VecDeque<Signal>,
}

// "Message Format"
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

// "Header Fields"
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

impl Connection {
    /// Connects to a socket and says who we are. The kernel tells the other side our user, so we name none: inside a user
    /// namespace we would name the wrong one.
    ///
    /// # Errors
    /// Nobody is there, or we are not let in.
    pub fn open(address: &SocketAddr) -> Result<Connection, Error> {
        let mut stream = UnixStream::connect_addr(address).map_err(|error| lost(&error))?;
        let begin = |stream: &mut UnixStream| -> io::Result<bool> {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
            loop {
                let line = read_line(stream)?;
                match line.split(|byte| *byte == b' ').next() {
                    Some(b"DATA") => {}
                    Some(b"OK") => return Ok(true),
                    _ => return Ok(false),
                }
            }
        };
        match begin(&mut stream) {
            Ok(true) => Ok(Connection { stream, serial: 0, signals: VecDeque::new() }),
            Ok(false) => Err(Error::Lost("we are not let in".into())),
            Err(error) => Err(lost(&error)),
        }
    }

    /// Calls a method and waits for what it returns.
    ///
    /// # Errors
    /// `Refused` with the name that the other side gave, or the connection broke.
    pub fn call(&mut self, target: Target<'_>, method: &str, body: &[Value]) -> Result<Vec<Value>, Error> {
        self.serial += 1;
        let message = call_message(self.serial, target, method, body);
        self.stream.write_all(&message).map_err(|error| lost(&error))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                SIGNAL => self.signals.push_back(message.signal()),
                METHOD_RETURN if message.reply_to() == Some(self.serial) => return Ok(message.body),
                ERROR if message.reply_to() == Some(self.serial) => {
                    let name = message.field(ERROR_NAME).and_then(Value::as_str).unwrap_or("?").to_owned();
                    let text = message.body.first().and_then(Value::as_str).unwrap_or("no reason given").to_owned();
                    return Err(Error::Refused { method: method.into(), name, message: text });
                }
                _ => {}
            }
        }
    }

    /// The next signal.
    ///
    /// # Errors
    /// None came in time, or the connection broke.
    pub fn signal(&mut self) -> Result<Signal, Error> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.receive()?;
            if message.kind == SIGNAL {
                return Ok(message.signal());
            }
        }
    }

    fn receive(&mut self) -> Result<Message, Error> {
        let nonsense = || Error::Lost("a message that cannot be read".into());
        // Everything up to the length of the header's fields.
        let mut bytes = vec![0; 16];
        self.stream.read_exact(&mut bytes).map_err(|error| lost(&error))?;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        if bytes[0] != b'l' || body > LARGEST || fields > LARGEST {
            return Err(nonsense()); // systemd is on this machine, and uses its order of bytes
        }
        let header = (16 + fields).next_multiple_of(8);
        bytes.resize(header + body, 0);
        self.stream.read_exact(&mut bytes[16..]).map_err(|error| lost(&error))?;
        Message::read(&bytes, header).ok_or_else(nonsense)
    }
}

struct Message {
    kind: u8,
    fields: Vec<Value>,
    body: Vec<Value>,
}

impl Message {
    fn read(bytes: &[u8], header: usize) -> Option<Message> {
        let mut read = decode("yyyyuua(yv)", &bytes[..header])?;
        let (Some(Value::Array(_, fields)), Some(Value::Byte(kind))) = (read.pop(), read.get(1)) else { return None };
        let mut message = Message { kind: *kind, fields, body: Vec::new() };
        if let Some(signature) = message.field(SIGNATURE).and_then(Value::as_str) {
            message.body = decode(signature, &bytes[header..])?;
        }
        Some(message)
    }

    fn field(&self, code: u8) -> Option<&Value> {
        self.fields.iter().find_map(|field| match field {
            Value::Struct(pair) if pair.first() == Some(&Value::Byte(code)) => pair.get(1),
            _ => None,
        })
    }

    fn reply_to(&self) -> Option<u32> {
        match self.field(REPLY_SERIAL)? {
            Value::Variant(serial) => match **serial {
                Value::U32(serial) => Some(serial),
                _ => None,
            },
            _ => None,
        }
    }

    fn signal(self) -> Signal {
        let member = self.field(MEMBER).and_then(Value::as_str).unwrap_or_default().to_owned();
        Signal { member, body: self.body }
    }
}

fn call_message(serial: u32, target: Target<'_>, method: &str, body: &[Value]) -> Vec<u8> {
    let mut encoded = Vec::new();
    body.iter().for_each(|value| value.encode(&mut encoded));
    let field = |code: u8, value: Value| Value::Struct(vec![Value::Byte(code), Value::variant(value)]);
    let mut fields = vec![
        field(PATH, Value::Path(target.path.into())),
        field(DESTINATION, Value::str(target.destination)),
        field(INTERFACE, Value::str(target.interface)),
        field(MEMBER, Value::str(method)),
    ];
    if !body.is_empty() {
        fields.push(field(SIGNATURE, Value::Signature(body.iter().map(Value::signature).collect())));
    }
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    Value::U32(u32::try_from(encoded.len()).unwrap_or(u32::MAX)).encode(&mut message);
    Value::U32(serial).encode(&mut message);
    Value::Array("(yv)".into(), fields).encode(&mut message);
    pad(&mut message, 8);
    message.extend(encoded);
    message
}

fn lost(error: &io::Error) -> Error {
    Error::Lost(match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
        ErrorKind::UnexpectedEof => "the connection was closed".into(),
        _ => rustix::io::Errno::from_io_error(error).map_or_else(|| error.to_string(), crate::error::words),
    })
}

/// A line of the authentication protocol, byte by byte: what follows the last one is not text.
fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            return Ok(line);
        }
        if line.len() > 1024 {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

/// The sockets that a bus address names: `unix:path=/run/…,guid=…;unix:abstract=…`.
///
/// Source: D-Bus Specification, "Server Addresses".
pub fn addresses(text: &str) -> Vec<SocketAddr> {
    let named = |address: &str| -> Option<SocketAddr> {
        address.strip_prefix("unix:")?.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", path) => SocketAddr::from_pathname(unescaped(path)?).ok(),
            ("abstract", name) => SocketAddr::from_abstract_name(unescaped(name)?).ok(),
            _ => None,
        })
    };
    text.split(';').filter_map(named).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The address of a socket's path, if one can lie there.
pub fn at(path: &Path) -> Option<SocketAddr> {
    SocketAddr::from_pathname(path).ok()
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    const TARGET: Target<'_> = Target { destination: "org.example", path: "/org/example", interface: "org.example.I" };

    fn answer(kind: u8, fields: Vec<(u8, Value)>, body: &[Value]) -> Vec<u8> {
        let mut encoded = Vec::new();
        body.iter().for_each(|value| value.encode(&mut encoded));
        let signature = Value::Signature(body.iter().map(Value::signature).collect());
        let fields = fields.into_iter().chain([(SIGNATURE, signature)]);
        let fields =
            fields.map(|(code, value)| Value::Struct(vec![Value::Byte(code), Value::variant(value)])).collect();
        let mut message = vec![b'l', kind, 0, 1];
        Value::U32(encoded.len() as u32).encode(&mut message);
        Value::U32(99).encode(&mut message);
        Value::Array("(yv)".into(), fields).encode(&mut message);
        pad(&mut message, 8);
        message.extend(encoded);
        message
    }

    /// Lets one client in, reads its calls one after another, and answers each with the bytes given for it.
    fn serve(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<Message>>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = io::BufReader::new(stream);
            for expected in ["\0AUTH EXTERNAL\r\n", "DATA\r\n", "BEGIN\r\n"] {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                assert_eq!(line, expected);
            }
            stream.get_mut().write_all(b"DATA\r\nOK 0123456789abcdef\r\n").unwrap();
            let mut calls = Vec::new();
            for answer in answers {
                let mut head = vec![0; 16];
                stream.read_exact(&mut head).unwrap();
                let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
                let header = (16 + number(12)).next_multiple_of(8);
                let length = header + number(4);
                head.resize(length, 0);
                stream.read_exact(&mut head[16..]).unwrap();
                calls.push(Message::read(&head, header).unwrap());
                stream.get_mut().write_all(&answer).unwrap();
            }
            calls
        });
        (dir, server)
    }

    #[test]
    fn a_call_is_answered_and_a_signal_is_not_lost_meanwhile() {
        let body = [Value::U32(7), Value::Path("/job/1".into()), Value::str("a.scope"), Value::str("done")];
        let mut bytes = answer(SIGNAL, vec![(MEMBER, Value::str("JobRemoved"))], &body);
        bytes.extend(answer(METHOD_RETURN, vec![(REPLY_SERIAL, Value::U32(1))], &[Value::Path("/job/1".into())]));
        let (dir, server) = serve(vec![bytes]);
        let mut connection = Connection::open(&at(&dir.path().join("bus")).unwrap()).unwrap();
        let sent = [Value::str("a.scope"), Value::Array("s".into(), vec![])];
        assert_eq!(connection.call(TARGET, "Start", &sent).unwrap(), [Value::Path("/job/1".into())]);
        let signal = connection.signal().unwrap();
        assert_eq!((signal.member.as_str(), &signal.body[..]), ("JobRemoved", &body[..]));
        let call = &server.join().unwrap()[0];
        assert_eq!((call.kind, &call.body[..]), (METHOD_CALL, &sent[..]));
        assert_eq!(call.field(MEMBER).unwrap().as_str(), Some("Start"));
        assert!(matches!(connection.signal(), Err(Error::Lost(_))), "the server is gone");
    }

    #[test]
    fn a_refusal_has_its_name_and_its_words() {
        let fields = vec![(REPLY_SERIAL, Value::U32(1)), (ERROR_NAME, Value::str("org.example.No"))];
        let (dir, server) = serve(vec![answer(ERROR, fields, &[Value::str("not today")])]);
        let mut connection = Connection::open(&at(&dir.path().join("bus")).unwrap()).unwrap();
        let error = connection.call(TARGET, "Start", &[]).unwrap_err();
        assert!(error.is("org.example.No"));
        assert_eq!(error.to_string(), "Start: not today (org.example.No)");
        server.join().unwrap();
    }

    #[test]
    fn an_address_may_name_several_sockets() {
        let paths = |text| -> Vec<String> {
            let path = |address: &SocketAddr| {
                address.as_pathname().map_or_else(
                    || String::from_utf8(address.as_abstract_name().unwrap().to_vec()).unwrap(),
                    |path| path.display().to_string(),
                )
            };
            addresses(text).iter().map(path).collect()
        };
        assert_eq!(paths("unix:path=/run/user/7/bus"), ["/run/user/7/bus"]);
        assert_eq!(paths("tcp:host=x;unix:abstract=/tmp/a%2db,guid=1;unix:guid=2,path=/x"), ["/tmp/a-b", "/x"]);
        assert!(paths("unix:tmpdir=/tmp").is_empty() && paths("unix:path=%4").is_empty());
    }
}
