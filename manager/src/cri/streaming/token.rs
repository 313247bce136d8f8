//! Tokens: each is for one request that was allowed by whoever asked over the daemon's socket, works once, and for a
//! minute. Host-network pods reach the server, too: a token cannot be guessed, nor found by how long a look takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::error::{Doing as _, Error, Result};

const LIFE: Duration = Duration::from_secs(60);
const MOST: usize = 1000;

/// What a client may do, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ticket {
    Exec { container: String, args: Vec<String>, wants: Wants },
    Attach { container: String, wants: Wants },
    PortForward { sandbox: String, ports: Vec<u16> },
}

/// Which streams there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wants {
    /// # Errors
    /// `InvalidArgument`: nothing to stream; or a terminal, which has one output, with two.
    pub fn check(self) -> Result<Wants> {
        if self.tty && self.stderr {
            return Err(Error::InvalidArgument("tty and stderr cannot both be true".into()));
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err(Error::InvalidArgument("one of stdin, stdout, or stderr must be set".into()));
        }
        Ok(self)
    }
}

/// A token's digest.
type Key = [u8; 32];

#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<Key, (Instant, Ticket)>>>);

impl Tokens {
    /// # Errors
    /// `ResourceExhausted`: too many wait to be used.
    pub fn issue(&self, ticket: Ticket) -> Result<String> {
        let token = BASE64_URL_SAFE_NO_PAD.encode(secret()?);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (since, _)| since.elapsed() < LIFE);
        if open.len() >= MOST {
            return Err(Error::ResourceExhausted(format!("{MOST} streaming requests wait to be used")));
        }
        open.insert(key(&token), (Instant::now(), ticket));
        Ok(token)
    }

    /// Takes a token out of the world.
    pub fn redeem(&self, token: &str) -> Option<Ticket> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(token));
        found.filter(|(since, _)| since.elapsed() < LIFE).map(|(_, ticket)| ticket)
    }
}

fn secret() -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    let mut filled = 0;
    while filled < secret.len() {
        filled += rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty())
            .doing(|| "asking the kernel for randomness".into())?;
    }
    Ok(secret)
}

fn key(token: &str) -> Key {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket::PortForward { sandbox: "s".into(), ports: vec![] }
    }

    #[test]
    fn a_token_works_once_and_no_two_are_alike() {
        let tokens = Tokens::default();
        let (one, two) = (tokens.issue(ticket()).unwrap(), tokens.issue(ticket()).unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 43);
        assert_eq!(tokens.redeem(&one), Some(ticket()));
        assert_eq!(tokens.redeem(&one), None);
        assert_eq!(tokens.redeem(""), None);
    }

    #[test]
    fn tokens_that_nobody_uses_are_bounded() {
        let tokens = Tokens::default();
        for _ in 0..MOST {
            tokens.issue(ticket()).unwrap();
        }
        assert!(matches!(tokens.issue(ticket()), Err(Error::ResourceExhausted(_))));
        tokens.0.lock().unwrap().values_mut().for_each(|(since, _)| *since -= LIFE);
        let token = tokens.issue(ticket()).unwrap();
        assert_eq!(tokens.0.lock().unwrap().len(), 1);
        tokens.0.lock().unwrap().values_mut().for_each(|(since, _)| *since -= LIFE);
        assert_eq!(tokens.redeem(&token), None);
    }

    #[test]
    fn a_terminal_has_one_output_and_something_must_stream() {
        let wants = |stdin, stdout, stderr, tty| Wants { stdin, stdout, stderr, tty }.check().is_ok();
        assert!(wants(true, true, false, true));
        assert!(wants(false, false, true, false));
        assert!(!wants(true, true, true, true));
        assert!(!wants(false, false, false, false));
    }
}
