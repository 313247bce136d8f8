//! Requests to one registry.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::auth::Challenge;
use super::reference::Reference;
use crate::error::{Error, Result};
use crate::names::Digest;

/// What a registry may send as a manifest or a token at most.
pub const LONGEST_DOCUMENT: usize = 4 << 20;
/// How long a registry may be silent.
const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;

/// Manifests and indexes that are understood.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

type Connection = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A registry, as far as one repository goes.
pub struct Registry {
    client: Connection,
    /// `http` or `https`.
    scheme: String,
    host: String,
    repository: String,
    /// Got by asking; goes to this registry alone.
    token: Mutex<Option<String>>,
}

/// A document with the digest of exactly these bytes.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A blob on its way.
pub struct Blob {
    body: Incoming,
    name: String,
}

impl Blob {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// `Unavailable`: the connection broke, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = timeout(PATIENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| {
                Error::Unavailable(format!("reading {}: nothing came for {} s", self.name, PATIENCE.as_secs()))
            })?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(Error::Unavailable(format!("reading {}: {}", self.name, chain(&error))));
                }
            }
        }
    }
}

impl Registry {
    /// # Errors
    /// This machine has no certificates to trust.
    pub fn new(reference: &Reference, scheme: Option<&str>) -> Result<Registry> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| Error::Internal(format!("reading the certificates that this machine trusts: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        let scheme = scheme.unwrap_or(if reference.is_local() { "http" } else { "https" });
        let host = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        Ok(Registry {
            client: Client::builder(TokioExecutor::new()).build(connector),
            scheme: scheme.into(),
            host: host.into(),
            repository: reference.repository.clone(),
            token: Mutex::new(None),
        })
    }

    /// A manifest or an index, by tag or digest. A digest that was asked for is checked.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` other bytes than asked for; `Unavailable`; `ResourceExhausted` too long.
    pub async fn manifest(&self, object: &str, expected: Option<&Digest>) -> Result<Manifest> {
        let name = format!("{}/{}:{object}", self.host, self.repository);
        let response = self.get(&self.address(&format!("manifests/{object}")), &name, Some(ACCEPTED), None).await?;
        let media_type = header(&response, &CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
        let told = header(&response, &hyper::header::HeaderName::from_static("docker-content-digest"));
        let bytes = whole(response, &name).await?;
        let digest = Digest::of(&bytes);
        for said in [expected.map_or("", Digest::as_str), told.as_str()] {
            if !said.is_empty() && said != digest.as_str() {
                return Err(Error::FailedPrecondition(format!("{name}: its digest is {digest}, not {said}")));
            }
        }
        Ok(Manifest { media_type, digest, bytes })
    }

    /// A blob from byte `offset` on.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let name = format!("{}/{}@{digest}", self.host, self.repository);
        let response = self
            .get(&self.address(&format!("blobs/{digest}")), &name, None, Some(offset).filter(|offset| *offset > 0))
            .await?;
        if offset > 0 {
            let range = header(&response, &CONTENT_RANGE);
            if response.status() != StatusCode::PARTIAL_CONTENT || !range.starts_with(&format!("bytes {offset}-")) {
                return Err(Error::Unavailable(format!(
                    "reading {name}: the registry does not go on at byte {offset}"
                )));
            }
        }
        Ok(Blob { body: response.into_body(), name })
    }

    fn address(&self, path: &str) -> String {
        format!("{}://{}/v2/{}/{path}", self.scheme, self.host, self.repository)
    }

    /// Gets an address; asks for a token once if the registry wants one, and follows redirects, without the token where
    /// they lead to another host, and never from HTTPS to HTTP.
    async fn get(
        &self,
        address: &str,
        name: &str,
        accept: Option<&str>,
        offset: Option<u64>,
    ) -> Result<Response<Incoming>> {
        let mut address = address.to_owned();
        let mut asked_for_token = false;
        for _ in 0..REDIRECTS {
            let uri: Uri = address
                .parse()
                .map_err(|_| Error::InvalidArgument(format!("{name}: {} is not an address", redacted(&address))))?;
            let ours = uri.authority().is_some_and(|authority| authority.as_str() == self.host)
                && uri.scheme_str() == Some(self.scheme.as_str());
            let mut request = Request::get(uri.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if let Some(token) = self.token.lock().await.as_ref().filter(|_| ours) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request =
                request.body(Empty::new()).map_err(|error| Error::InvalidArgument(format!("{name}: {error}")))?;
            let response = self.send(request, name).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if ours && !asked_for_token => {
                    asked_for_token = true;
                    let challenge = Challenge::parse(&header(&response, &WWW_AUTHENTICATE));
                    let Some(token_address) = challenge.token_address() else {
                        return Err(Error::PermissionDenied(format!("pulling {name}: no basic auth credentials")));
                    };
                    *self.token.lock().await = Some(self.fetch_token(&token_address, name).await?);
                }
                status if status.is_redirection() => {
                    let location = header(&response, &LOCATION);
                    let next = absolute(&uri, &location)
                        .ok_or_else(|| Error::Unknown(format!("{name}: redirected to nowhere")))?;
                    if uri.scheme_str() == Some("https") && !next.starts_with("https://") {
                        return Err(Error::PermissionDenied(format!(
                            "{name}: redirected from HTTPS to plain HTTP at {}",
                            redacted(&next)
                        )));
                    }
                    address = next;
                }
                status => return Err(refusal(status, name)),
            }
        }
        Err(Error::Unknown(format!("{name}: more than {REDIRECTS} redirects")))
    }

    async fn send(&self, request: Request<Empty<Bytes>>, name: &str) -> Result<Response<Incoming>> {
        let answer = timeout(PATIENCE, self.client.request(request)).await;
        let answer = answer
            .map_err(|_| Error::Unavailable(format!("pulling {name}: no answer for {} s", PATIENCE.as_secs())))?;
        answer.map_err(|error| {
            let text = chain(&error);
            let hint = if text.contains("InvalidContentType") || text.contains("corrupt message") {
                ": http: server gave HTTP response to HTTPS client"
            } else if text.contains("onnection refused") {
                ": connect: connection refused"
            } else {
                ""
            };
            Error::Unavailable(format!("pulling {name}: {text}{hint}"))
        })
    }

    /// Anonymously: no credential is sent to an address that a registry has named.
    async fn fetch_token(&self, address: &str, name: &str) -> Result<String> {
        if self.scheme == "https" && !address.starts_with("https://") {
            return Err(Error::PermissionDenied(format!(
                "{name}: tokens are offered over plain HTTP at {}",
                redacted(address)
            )));
        }
        let request = Request::get(address).body(Empty::new());
        let request =
            request.map_err(|_| Error::InvalidArgument(format!("{name}: {} is not an address", redacted(address))))?;
        let response = self.send(request, name).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response.status(), name));
        }
        let answer: serde_json::Value = serde_json::from_slice(&whole(response, name).await?)
            .map_err(|error| Error::Unknown(format!("{name}: reading a token: {error}")))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        token.map(str::to_owned).ok_or_else(|| Error::Unknown(format!("{name}: the answer has no token")))
    }
}

fn refusal(status: StatusCode, name: &str) -> Error {
    match status {
        StatusCode::NOT_FOUND => Error::NotFound(name.to_owned()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::PermissionDenied(format!(
            "pulling {name}: pull access denied, repository does not exist or may require authorization"
        )),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Error::Unavailable(format!("pulling {name}: unexpected status {status}"))
        }
        status => Error::Unknown(format!("pulling {name}: unexpected status {status}")),
    }
}

fn header(response: &Response<Incoming>, name: &hyper::header::HeaderName) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A document of at most [`LONGEST_DOCUMENT`] bytes.
async fn whole(response: Response<Incoming>, name: &str) -> Result<Bytes> {
    let too_long = || Error::ResourceExhausted(format!("{name}: longer than {LONGEST_DOCUMENT} bytes"));
    if header(&response, &CONTENT_LENGTH).parse::<usize>().is_ok_and(|length| length > LONGEST_DOCUMENT) {
        return Err(too_long());
    }
    let mut blob = Blob { body: response.into_body(), name: name.to_owned() };
    let mut bytes = Vec::new();
    while let Some(more) = blob.next().await? {
        if bytes.len() + more.len() > LONGEST_DOCUMENT {
            return Err(too_long());
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes.into())
}

/// A redirect's target as a whole address.
fn absolute(from: &Uri, location: &str) -> Option<String> {
    match location {
        "" => None,
        whole if whole.starts_with("http://") || whole.starts_with("https://") => Some(whole.to_owned()),
        path if path.starts_with('/') => Some(format!("{}://{}{path}", from.scheme_str()?, from.authority()?)),
        _ => None,
    }
}

/// An address without its query, which may hold a signature, and without credentials.
fn redacted(address: &str) -> String {
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
}
