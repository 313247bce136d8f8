//! What a registry's refusal asks for, and who can answer it.
//!
//! Source: distribution-spec, "Token Authentication"; RFC 7235; RFC 6749, "Refreshing an Access Token".

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};

/// What somebody knows that a registry wants to see.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Secret {
    #[default]
    None,
    Basic {
        username: String,
        password: String,
    },
    /// Of an identity: exchanged for a token at the address that the registry names.
    Refresh(String),
    /// The whole value of the header `Authorization`.
    Header(String),
}

impl Secret {
    /// As docker's `config.json` and the kubelet have it: base64 of a name and a password.
    pub fn from_docker(text: &str) -> Option<Secret> {
        let plain = BASE64_STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
        let (username, password) = plain.split_once(':')?;
        Some(Secret::Basic { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }

    /// The header's value for a registry that takes names and passwords.
    pub fn basic(&self) -> Option<String> {
        match self {
            Secret::Basic { username, password } => {
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
            }
            _ => None,
        }
    }
}

/// Secrets are not printed.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Secret::None => "None",
            Secret::Basic { .. } => "Basic",
            Secret::Refresh(_) => "Refresh",
            Secret::Header(_) => "Header",
        })
    }
}

/// Where secrets come from.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    #[default]
    None,
    /// For the registry of the reference, and no mirror.
    Given(Secret),
    /// Somebody is asked when it is needed.
    Asked(mpsc::Sender<Question>),
}

/// What they are asked.
#[derive(Debug)]
pub struct Question {
    pub host: String,
    /// The registry's, as they came.
    pub challenges: Vec<String>,
    /// Dropped: no secret.
    pub answer: oneshot::Sender<Secret>,
}

impl Credentials {
    pub async fn ask(&self, host: &str, mirror: bool, challenges: &[String]) -> Secret {
        match self {
            Credentials::None => Secret::None,
            Credentials::Given(_) if mirror => Secret::None,
            Credentials::Given(secret) => secret.clone(),
            Credentials::Asked(ask) => {
                let (answer, answered) = oneshot::channel();
                let question = Question { host: host.to_owned(), challenges: challenges.to_vec(), answer };
                match ask.send(question).await {
                    Ok(()) => answered.await.unwrap_or_default(),
                    Err(_) => Secret::None,
                }
            }
        }
    }
}

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

    /// The one of several that is answered: a token tells the registry less than a password.
    pub fn best(headers: &[String]) -> Option<Challenge> {
        let mut known: Vec<Challenge> = headers.iter().map(|header| Challenge::parse(header)).collect();
        let place = |scheme: &str| known.iter().position(|challenge| challenge.scheme == scheme);
        let place = place("bearer").or_else(|| place("basic"))?;
        Some(known.swap_remove(place))
    }

    /// What is asked of a token server: its address, and what for, as a form has it.
    ///
    /// # Errors
    /// The challenge names no address.
    pub fn token_request(&self, scopes: &[&str]) -> Result<(String, String)> {
        let realm = self.parameters.get("realm").filter(|realm| !realm.is_empty());
        let realm = realm.ok_or_else(|| Error::PermissionDenied("the registry names no token server".into()))?;
        let mut form = Vec::new();
        if let Some(service) = self.parameters.get("service") {
            form.push(format!("service={}", escaped(service)));
        }
        let said = self.parameters.get("scope").map(String::as_str);
        let mut wanted: Vec<&str> = said.into_iter().collect();
        wanted.extend(scopes.iter().filter(|scope| said != Some(**scope)));
        form.extend(wanted.iter().map(|scope| format!("scope={}", escaped(scope))));
        Ok((realm.clone(), form.join("&")))
    }
}

/// As a form's value. Source: WHATWG URL, "application/x-www-form-urlencoded", with nothing but what is safe everywhere left.
pub fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_says_where_a_token_is_to_be_had() {
        let challenge = Challenge::parse(
            "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"repository:a/b:pull,push\"",
        );
        let (address, form) = challenge.token_request(&["repository:a/b:pull,push", "repository:c:pull"]).unwrap();
        assert_eq!(address, "https://auth.example/token");
        assert_eq!(form, "service=reg&scope=repository:a/b:pull%2Cpush&scope=repository:c:pull");
        assert!(Challenge::parse("Bearer service=\"x\"").token_request(&[]).is_err());
    }

    #[test]
    fn of_two_challenges_the_token_is_taken() {
        let headers = ["Basic realm=\"x\"".to_owned(), "Bearer realm=\"https://a\"".to_owned()];
        assert_eq!(Challenge::best(&headers).unwrap().scheme, "bearer");
        assert_eq!(Challenge::best(&headers[..1]).unwrap().scheme, "basic");
        assert_eq!(Challenge::best(&["Negotiate".to_owned()]), None);
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::Basic { username: "me".into(), password: "hunter2".into() };
        assert_eq!(format!("{secret:?}"), "Basic");
        assert_eq!(secret.basic().unwrap(), "Basic bWU6aHVudGVyMg==");
        assert!(Secret::from_docker("bWU6aHVudGVyMg==") == Some(secret));
        assert!(Secret::from_docker("not base64").is_none());
    }
}
