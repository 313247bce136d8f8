//! Requests to one server: who we are is proven when it asks, redirects are followed as far as they may lead, and no secret
//! goes anywhere but to the server that it is for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
    USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::auth::{Challenge, Credentials, Secret, escaped};
use super::dial::{Dialer, connector};
use super::hosts::{Capability, Host};
use crate::error::{Error, Result};

/// What a registry may send as a manifest, a token or an error at most.
pub const LONGEST_DOCUMENT: usize = 4 << 20;
const REDIRECTS: usize = 5;
/// What is read of a connection at once: an answer's pieces are waiting in memory until the disk has them.
const READ_AT_ONCE: usize = 128 << 10;
/// A first answer, a token, and once more if the token has expired meanwhile.
const ATTEMPTS_TO_AUTHORIZE: usize = 2;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// What is sent, and how to make its body again if it must be sent again.
pub struct Ask<'a> {
    pub method: Method,
    /// Below the server's path, or a whole address.
    pub to: &'a str,
    /// For errors: what is asked for.
    pub name: &'a str,
    /// What a token must be good for.
    pub scopes: &'a [&'a str],
    pub headers: HeaderMap,
    pub body: Option<&'a (dyn Fn() -> Result<Body> + Send + Sync)>,
    /// Grows while the body is sent: then there is no silence.
    pub sent: Option<Arc<AtomicU64>>,
}

impl<'a> Ask<'a> {
    pub fn get(to: &'a str, name: &'a str, scopes: &'a [&'a str]) -> Ask<'a> {
        Ask { method: Method::GET, to, name, scopes, headers: HeaderMap::new(), body: None, sent: None }
    }

    pub fn accept(mut self, types: &'static str) -> Ask<'a> {
        self.headers.insert(ACCEPT, HeaderValue::from_static(types));
        self
    }

    /// From a byte on.
    pub fn from(mut self, offset: u64) -> Ask<'a> {
        if offset > 0 {
            let value = HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header's value");
            self.headers.insert(RANGE, value);
        }
        self
    }
}

/// A server that may answer for a registry.
pub struct Server {
    client: Client<HttpsConnector<Dialer>, Body>,
    host: Host,
    /// The registry that it is a mirror of.
    mirror_of: Option<String>,
    credentials: Credentials,
    headers: HeaderMap,
    patience: Duration,
    /// What it wants to see, by what it is good for.
    authorizations: Mutex<HashMap<String, HeaderValue>>,
}

impl Server {
    /// # Errors
    /// A certificate cannot be read, or a header is none.
    pub fn new(
        host: Host,
        mirror_of: Option<String>,
        credentials: Credentials,
        more_headers: &[(String, String)],
        patience: Duration,
    ) -> Result<Server> {
        let mut headers = HeaderMap::new();
        for (name, value) in more_headers.iter().chain(&host.headers) {
            let wrong = || Error::InvalidArgument(format!("header {name:?} for {}", host.authority));
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let client = Client::builder(TokioExecutor::new()).http1_max_buf_size(READ_AT_ONCE).build(connector(&host)?);
        Ok(Server { client, host, mirror_of, credentials, headers, patience, authorizations: Mutex::default() })
    }

    pub fn can(&self, capability: Capability) -> bool {
        self.host.capabilities.contains(&capability)
    }

    pub fn authority(&self) -> &str {
        &self.host.authority
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    pub fn address_of(&self, to: &str) -> String {
        if to.starts_with("http://") || to.starts_with("https://") {
            return to.to_owned();
        }
        let Host { scheme, authority, path, .. } = &self.host;
        let mut address = format!("{scheme}://{authority}{path}/{to}");
        if let Some(registry) = &self.mirror_of {
            let separator = if address.contains('?') { '&' } else { '?' };
            address = format!("{address}{separator}ns={}", escaped(registry));
        }
        address
    }

    /// Sends, and answers what the server asks about it. Of redirects only those of GET and HEAD are followed, without
    /// secrets where they lead elsewhere, and never from HTTPS to HTTP.
    ///
    /// # Errors
    /// `Unavailable` no answer; `PermissionDenied` no secret, or a redirect that is refused.
    pub async fn send(&self, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let mut address = self.address_of(ask.to);
        let mut attempts = 0;
        for _ in 0..=REDIRECTS + ATTEMPTS_TO_AUTHORIZE {
            let uri: Uri = address.parse().map_err(|_| {
                Error::InvalidArgument(format!("{}: {} is not an address", ask.name, redacted(&address)))
            })?;
            let ours = self.is_ours(&uri);
            let scope = ask.scopes.join(" ");
            let used = if ours { self.authorizations.lock().await.get(&scope).cloned() } else { None };
            let response = self.answer(self.request(ask, &uri, ours, used.as_ref())?, ask).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && ours && attempts < ATTEMPTS_TO_AUTHORIZE {
                attempts += 1;
                self.authorize(ask, &scope, used, response.headers()).await?;
            } else if status.is_redirection() && matches!(ask.method, Method::GET | Method::HEAD) {
                let location = header(&response, &LOCATION);
                let next = resolved(&uri, &location)
                    .ok_or_else(|| Error::Unknown(format!("{}: redirected to nowhere", ask.name)))?;
                if uri.scheme_str() == Some("https") && !next.starts_with("https://") {
                    return Err(Error::PermissionDenied(format!(
                        "{}: redirected from HTTPS to plain HTTP at {}",
                        ask.name,
                        redacted(&next)
                    )));
                }
                address = next;
            } else {
                return Ok(response);
            }
        }
        Err(Error::Unknown(format!("{}: more than {REDIRECTS} redirects", ask.name)))
    }

    fn is_ours(&self, uri: &Uri) -> bool {
        uri.authority().is_some_and(|authority| authority.as_str() == self.host.authority)
            && uri.scheme_str() == Some(self.host.scheme.as_str())
    }

    fn request(
        &self,
        ask: &Ask<'_>,
        uri: &Uri,
        ours: bool,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Body>> {
        let body = ask.body.map_or_else(|| Ok(empty()), |body| body())?;
        let mut request = Request::new(body);
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&ask.headers);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tared/", env!("CARGO_PKG_VERSION"))));
        if ours {
            for (name, value) in &self.headers {
                headers.append(name, value.clone());
            }
            if let Some(value) = authorization {
                headers.insert(AUTHORIZATION, value.clone());
            }
        }
        Ok(request)
    }

    /// Waits for an answer, as long as something is still being sent.
    async fn answer(&self, request: Request<Body>, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let answer = self.client.request(request);
        tokio::pin!(answer);
        let sent = || ask.sent.as_ref().map_or(0, |sent| sent.load(Ordering::Relaxed));
        let mut before = sent();
        let answer = loop {
            match timeout(self.patience, &mut answer).await {
                Ok(answer) => break answer,
                Err(_) if sent() > before => before = sent(),
                Err(_) => {
                    return Err(Error::Unavailable(format!(
                        "{}: no answer for {} s",
                        ask.name,
                        self.patience.as_secs()
                    )));
                }
            }
        };
        answer.map_err(|error| {
            let text = chain(&error);
            let hint = if text.contains("InvalidContentType") || text.contains("corrupt message") {
                ": http: server gave HTTP response to HTTPS client"
            } else if text.contains("onnection refused") {
                ": connect: connection refused"
            } else if text.contains("certificate") {
                " (tls: failed to verify certificate: x509)"
            } else {
                ""
            };
            Error::Unavailable(format!("{}: {text}{hint}", ask.name))
        })
    }

    /// Finds out what the server wants to see. Of many that are refused at once, the first one does.
    async fn authorize(
        &self,
        ask: &Ask<'_>,
        scope: &str,
        used: Option<HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<()> {
        let mut known = self.authorizations.lock().await;
        if known.get(scope) != used.as_ref() {
            return Ok(()); // somebody was faster
        }
        let challenges: Vec<String> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let none = || Error::PermissionDenied(format!("{}: no basic auth credentials", ask.name));
        let challenge = Challenge::best(&challenges).ok_or_else(none)?;
        let secret = self.credentials.ask(&self.host.authority, self.mirror_of.is_some(), &challenges).await;
        let value = match (&secret, challenge.scheme.as_str()) {
            (Secret::Header(value), _) => value.clone(),
            (secret, "basic") => secret.basic().ok_or_else(none)?,
            (secret, _) => format!("Bearer {}", self.token(ask, &challenge, secret).await?),
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| Error::PermissionDenied(format!("{}: what proves who we are is no header", ask.name)))?;
        value.set_sensitive(true);
        if used.as_ref() == Some(&value) {
            return Err(denied(ask.name)); // it was refused a moment ago
        }
        known.insert(scope.to_owned(), value);
        Ok(())
    }

    /// A token, from whom the registry trusts. What it names must be as safe as itself: then our secret may go there.
    async fn token(&self, ask: &Ask<'_>, challenge: &Challenge, secret: &Secret) -> Result<String> {
        let name = ask.name;
        let (realm, form) = challenge.token_request(ask.scopes).map_err(|error| match error {
            Error::PermissionDenied(text) => Error::PermissionDenied(format!("{name}: {text}")),
            error => error,
        })?;
        if self.host.scheme == "https" && !realm.starts_with("https://") {
            return Err(Error::PermissionDenied(format!(
                "{name}: tokens are offered over plain HTTP at {}",
                redacted(&realm)
            )));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let mut address = if form.is_empty() { realm.clone() } else { format!("{realm}{separator}{form}") };
        let wrong = || Error::InvalidArgument(format!("{name}: {} is not an address", redacted(&realm)));
        let mut request = match secret {
            Secret::Refresh(refresh) => {
                let text =
                    format!("grant_type=refresh_token&client_id=tared&{form}&refresh_token={}", escaped(refresh));
                let kind = "application/x-www-form-urlencoded";
                Request::post(&realm).header(CONTENT_TYPE, kind).body(full(text.into())).map_err(|_| wrong())?
            }
            Secret::Basic { username, .. } => {
                let separator = if address.contains('?') { '&' } else { '?' };
                address = format!("{address}{separator}account={}", escaped(username));
                Request::get(&address).body(empty()).map_err(|_| wrong())?
            }
            _ => Request::get(&address).body(empty()).map_err(|_| wrong())?,
        };
        if let Some(value) = secret.basic() {
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let response = self.answer(request, ask).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response.status(), name));
        }
        let answer: serde_json::Value = serde_json::from_slice(&whole(response, name, self.patience).await?)
            .map_err(|error| Error::Unknown(format!("{name}: reading a token: {error}")))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        token.map(str::to_owned).ok_or_else(|| Error::Unknown(format!("{name}: the answer has no token")))
    }
}

fn denied(name: &str) -> Error {
    Error::PermissionDenied(format!(
        "{name}: pull access denied, repository does not exist or may require authorization"
    ))
}

/// What a status that is no success means.
pub fn refusal(status: StatusCode, name: &str) -> Error {
    match status {
        StatusCode::NOT_FOUND => Error::NotFound(name.to_owned()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => denied(name),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Error::Unavailable(format!("{name}: unexpected status {status}"))
        }
        status => Error::Unknown(format!("{name}: unexpected status {status}")),
    }
}

pub fn header(response: &Response<Incoming>, name: &HeaderName) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A body, piece by piece.
pub struct Blob {
    body: Incoming,
    name: String,
    patience: Duration,
}

impl Blob {
    pub fn new(response: Response<Incoming>, name: &str, patience: Duration) -> Blob {
        Blob { body: response.into_body(), name: name.to_owned(), patience }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// `Unavailable`: the connection broke, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = timeout(self.patience, self.body.frame()).await;
            let frame = frame.map_err(|_| {
                Error::Unavailable(format!("{}: nothing came for {} s", self.name, self.patience.as_secs()))
            })?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(Error::Unavailable(format!("{}: {}", self.name, chain(&error)))),
            }
        }
    }
}

/// A document of at most [`LONGEST_DOCUMENT`] bytes.
pub async fn whole(response: Response<Incoming>, name: &str, patience: Duration) -> Result<Bytes> {
    let too_long = || Error::ResourceExhausted(format!("{name}: longer than {LONGEST_DOCUMENT} bytes"));
    if header(&response, &CONTENT_LENGTH).parse::<usize>().is_ok_and(|length| length > LONGEST_DOCUMENT) {
        return Err(too_long());
    }
    let mut blob = Blob::new(response, name, patience);
    let mut bytes = Vec::new();
    while let Some(more) = blob.next().await? {
        if bytes.len() + more.len() > LONGEST_DOCUMENT {
            return Err(too_long());
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes.into())
}

/// A location as a whole address. Source: RFC 3986, "Reference Resolution", as far as servers use it.
pub fn resolved(from: &Uri, location: &str) -> Option<String> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    match location {
        "" => None,
        whole if whole.starts_with("http://") || whole.starts_with("https://") => Some(whole.to_owned()),
        other if other.starts_with("//") => Some(format!("{scheme}:{other}")),
        path if path.starts_with('/') => Some(format!("{scheme}://{authority}{path}")),
        query if query.starts_with('?') => Some(format!("{scheme}://{authority}{}{query}", from.path())),
        other if other.split(['/', '?']).next().is_some_and(|first| first.contains(':')) => None, // another scheme
        relative => {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            Some(format!("{scheme}://{authority}{folder}/{relative}"))
        }
    }
}

/// An address without its query, which may hold a signature, and without credentials.
pub fn redacted(address: &str) -> String {
    let plain = address.split('?').next().unwrap_or_default();
    match (plain.split_once("://"), plain.contains('@')) {
        (Some((scheme, rest)), true) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest)),
        _ => plain.to_owned(),
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {}", cause.to_string().to_lowercase());
        source = cause.source();
    }
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_addresses_are_not_told() {
        assert_eq!(redacted("https://u:p@host/x?sig=abc"), "https://host/x");
        assert_eq!(redacted("https://host/x?token=1"), "https://host/x");
    }

    #[test]
    fn a_location_may_be_relative_and_never_of_another_kind() {
        let from: Uri = "https://host:5000/v2/a/blobs/uploads/1?x=y".parse().unwrap();
        for (location, expected) in [
            ("https://other/x", Some("https://other/x")),
            ("/v2/b", Some("https://host:5000/v2/b")),
            ("//other/c", Some("https://other/c")),
            ("2?state=s", Some("https://host:5000/v2/a/blobs/uploads/2?state=s")),
            ("?state=s", Some("https://host:5000/v2/a/blobs/uploads/1?state=s")),
            ("ftp://other/x", None),
            ("", None),
        ] {
            assert_eq!(resolved(&from, location).as_deref(), expected, "{location}");
        }
    }
}
