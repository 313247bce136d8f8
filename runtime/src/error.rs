//! Errors as sentences: what was being done, to what, and the kernel's answer in its own words.
//!
//! Callers match these words (docker, podman, CRI-O and containerd's shim choose exit codes by them), so the text of an
//! error is part of the interface: strerror's words in lower case, never a number.

use rustix::io::Errno;

/// A system call that failed: what we were doing, to what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {}", words(*errno))] // mounting proc at /proc: operation not permitted
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

/// strerror's text in lower case: `operation not permitted`.
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_callers_match_it() {
        let failed = Err::<(), _>(Errno::PERM).doing(|| "mounting proc at /proc".into()).unwrap_err();
        assert_eq!(failed.to_string(), "mounting proc at /proc: operation not permitted");
        assert_eq!(words(Errno::NOENT), "no such file or directory");
        assert_eq!(words(Errno::SRCH), "no such process");
    }
}
