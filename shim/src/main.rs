//! `containerd-shim-tare-v2`: supervises the containers of one pod or task, and outlives the daemon that started it.
//!
//! `start` finds or makes the serving process of a group and prints its address; the serving process is one thread around
//! one [`serve`] loop; `delete` cleans up after a serving process that is gone.
//!
//! Source: containerd's runtime v2 contract (core/runtime/v2/README.md).

mod address;
mod connection;
mod console;
mod delete;
mod flags;
mod info;
mod metrics;
mod mounts;
mod options;
mod process;
mod publisher;
mod runtime;
mod serve;
mod start;
mod stdio;
mod sys;
mod task;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let Err(error) = run(&words) {
        eprintln!("{error}"); // containerd puts this into its own error
        std::process::exit(1);
    }
}

fn run(words: &[String]) -> Result<(), Error> {
    let flags = flags::Flags::read(words)?;
    match flags.action.as_str() {
        _ if flags.version => {
            println!("{}:\n  Version:  {}", words[0], env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ if flags.info => info::print(),
        "start" => start::start(&flags),
        "delete" => delete::delete(&flags),
        "" => serve::serve(&flags),
        other => Err(Error::new(format!("unknown action {other:?}: start and delete are known"))),
    }
}

/// A sentence: what was being done, to what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

/// Adds what was being done to an error of the system, in the words that clients match.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error(format!("{}: {}", what(), words_of(&error))))
    }
}

impl<T> Doing<T> for Result<T, rustix::io::Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(std::io::Error::from).doing(what)
    }
}

/// strerror's text in lower case, without a number.
fn words_of(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
