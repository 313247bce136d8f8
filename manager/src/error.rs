//! What can go wrong, by what a caller does about it. Clients turn codes back into classes, and some look at the text: it
//! ends with the class in containerd's words.

use std::fmt::Display;
use std::io;

/// A failure: its class and a sentence, without the class's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}: not found")]
    NotFound(String),
    #[error("{0}: already exists")]
    AlreadyExists(String),
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    #[error("{0}: unavailable")]
    Unavailable(String),
    #[error("{0}: out of range")]
    OutOfRange(String),
    #[error("{0}: resource exhausted")]
    ResourceExhausted(String),
    #[error("{0}: not implemented")]
    Unimplemented(String),
    #[error("{0}: permission denied")]
    PermissionDenied(String),
    #[error("{0}: aborted")]
    Aborted(String),
    #[error("{0}")]
    DeadlineExceeded(String),
    #[error("{0}")]
    Internal(String),
    /// Somebody else's failure, in their words.
    #[error("{0}")]
    Unknown(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the system, after what was being done: `making /x: no space left on device`.
    pub fn io(doing: impl Display, error: &io::Error) -> Error {
        let text = error.to_string();
        let words = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        let text = format!("{doing}: {words}");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::ResourceExhausted(text),
            _ => Error::Internal(text),
        }
    }

    /// Another program's refusal by a status code of gRPC, which ttrpc has too: its class, and its words once, for the class
    /// says its own again.
    pub fn told(code: i32, message: &str) -> Error {
        use tonic::Code;
        type Class = (Code, &'static str, fn(String) -> Error);
        const CLASSES: &[Class] = &[
            (Code::NotFound, ": not found", Error::NotFound),
            (Code::AlreadyExists, ": already exists", Error::AlreadyExists),
            (Code::InvalidArgument, ": invalid argument", Error::InvalidArgument),
            (Code::FailedPrecondition, ": failed precondition", Error::FailedPrecondition),
            (Code::Unavailable, ": unavailable", Error::Unavailable),
            (Code::OutOfRange, ": out of range", Error::OutOfRange),
            (Code::ResourceExhausted, ": resource exhausted", Error::ResourceExhausted),
            (Code::Unimplemented, ": not implemented", Error::Unimplemented),
            (Code::PermissionDenied, ": permission denied", Error::PermissionDenied),
            (Code::Aborted, ": aborted", Error::Aborted),
        ];
        match CLASSES.iter().find(|(class, ..)| *class as i32 == code) {
            Some((_, words, class)) => class(message.strip_suffix(words).unwrap_or(message).to_owned()),
            None => Error::Unknown(message.to_owned()),
        }
    }
}

impl Error {
    /// The same class, with `context: ` before its sentence.
    pub fn under(mut self, context: &str) -> Error {
        let (Error::NotFound(text)
        | Error::AlreadyExists(text)
        | Error::InvalidArgument(text)
        | Error::FailedPrecondition(text)
        | Error::Unavailable(text)
        | Error::OutOfRange(text)
        | Error::ResourceExhausted(text)
        | Error::Unimplemented(text)
        | Error::PermissionDenied(text)
        | Error::Aborted(text)
        | Error::DeadlineExceeded(text)
        | Error::Internal(text)
        | Error::Unknown(text)) = &mut self;
        text.insert_str(0, &format!("{context}: "));
        self
    }
}

/// Adds what was being done to an error of the system.
pub trait Doing<T> {
    /// `what` runs only on failure.
    ///
    /// # Errors
    /// The one that was there, as a sentence.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io(what(), &error))
    }
}

impl<T> Doing<T> for std::result::Result<T, rustix::io::Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(io::Error::from).doing(what)
    }
}
