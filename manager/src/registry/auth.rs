//! What a registry's refusal asks for: `Bearer realm="…",service="…",scope="…"`.
//!
//! Source: distribution-spec, "Token Authentication"; RFC 7235.

use std::collections::HashMap;

/// A challenge: its scheme in lower case, and its parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: String,
    pub parameters: HashMap<String, String>,
}

impl Challenge {
    /// Reads one; what is malformed has fewer parameters.
    pub fn parse(header: &str) -> Challenge {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let mut parameters = HashMap::new();
        while let Some((name, value)) = rest.split_once('=') {
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => value.split_once(',').unwrap_or((value, "")),
            };
            parameters.insert(name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
            rest = after.trim_start_matches([',', ' ']);
        }
        Challenge { scheme: scheme.to_ascii_lowercase(), parameters }
    }

    /// Where a token is to be had, if this challenge asks for one: the address with its query.
    pub fn token_address(&self) -> Option<String> {
        if self.scheme != "bearer" {
            return None;
        }
        let mut address = self.parameters.get("realm")?.clone();
        let mut separator = if address.contains('?') { '&' } else { '?' };
        for name in ["service", "scope"] {
            if let Some(value) = self.parameters.get(name) {
                let value: String = value.bytes().map(escaped).collect();
                address = format!("{address}{separator}{name}={value}");
                separator = '&';
            }
        }
        Some(address)
    }
}

fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_says_where_a_token_is_to_be_had() {
        let challenge = Challenge::parse(
            "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"repository:a/b:pull,push\"",
        );
        assert_eq!(
            challenge.token_address().unwrap(),
            "https://auth.example/token?service=reg&scope=repository:a/b:pull%2Cpush"
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\"").token_address(), None);
    }
}
