//! Capabilities as CRI names them.

use crate::capability::{self, NAMES};
use crate::error::{Error, Result};

/// Those of the daemon: nobody can be given more.
pub fn own() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = bits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    NAMES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

/// The full name of one that may be written `NET_ADMIN` or `cap_net_admin`.
///
/// # Errors
/// `InvalidArgument`: there is none of that name.
pub fn full(field: &str, name: &str) -> Result<String> {
    let full = capability::full(name);
    match capability::is_known(&full) {
        true => Ok(full),
        false => Err(Error::InvalidArgument(format!("{field}: unknown capability {name:?}"))),
    }
}
