//! ttrpc: requests and responses over a Unix socket, without HTTP/2.
//!
//! [`frame`] takes bytes apart and puts them together; it knows nothing of sockets, so that an event loop, a blocking
//! caller and an asynchronous client can all use it.
//!
//! Source: containerd/ttrpc PROTOCOL.md.

pub mod blocking;
#[cfg(feature = "client")]
pub mod client;
pub mod frame;
pub mod server;

use prost::Message as _;

use crate::google::rpc::Status;
use crate::wire::{KeyValue, Request, Response};

/// gRPC's status codes, as far as they are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: i32,
    pub message: String,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code: code as i32, message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The request for one call, as a frame's data.
pub fn request(service: &str, method: &str, payload: Vec<u8>, namespace: &str) -> Vec<u8> {
    let metadata = vec![KeyValue { key: "containerd-namespace-ttrpc".into(), value: namespace.into() }];
    let request = Request { service: service.into(), method: method.into(), payload, timeout_nano: 0, metadata };
    request.encode_to_vec()
}

/// The answer to one call, as a frame's data.
pub fn response(answer: Result<Vec<u8>, Error>) -> Vec<u8> {
    let response = match answer {
        Ok(payload) => Response { status: None, payload },
        Err(Error { code, message }) => {
            Response { status: Some(Status { code, message, details: Vec::new() }), payload: Vec::new() }
        }
    };
    response.encode_to_vec()
}

/// What a response's data says.
///
/// # Errors
/// The call did not succeed, or the bytes are not a response.
pub fn answer(data: &[u8]) -> Result<Vec<u8>, Error> {
    let response =
        Response::decode(data).map_err(|error| Error::new(Code::Internal, format!("reading a response: {error}")))?;
    match response.status {
        Some(Status { code, message, .. }) if code != 0 => Err(Error { code, message }),
        _ => Ok(response.payload),
    }
}
