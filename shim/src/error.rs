//! Errors as sentences: what was being done, to what, and the kernel's answer in its own words.

use rustix::io::Errno;
use tare_proto::ttrpc::{Code, Error};

/// A system call that failed: what we were doing, to what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {}", words(*errno))]
pub struct Failed {
    pub doing: String,
    pub errno: Errno,
}

/// Adds to an error what was being done, and to what.
pub trait Doing<T> {
    /// `what` runs only on failure.
    ///
    /// # Errors
    /// The one that was there, as a [`Failed`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed> {
        self.map_err(|errno| Failed { doing: what(), errno })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed> {
        self.map_err(|error| Failed { doing: what(), errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
    }
}

/// What a client is told of it.
impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        Error::new(Code::Unknown, failed.to_string())
    }
}

/// strerror's text in lower case: `operation not permitted`. Clients match these words.
fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_what_was_done_in_lower_case() {
        let failed = Err::<(), _>(Errno::NOENT).doing(|| "opening the fifo /run/x".into()).unwrap_err();
        assert_eq!(failed.to_string(), "opening the fifo /run/x: no such file or directory");
    }
}
