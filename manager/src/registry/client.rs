//! A registry, as far as one repository goes: its mirrors are asked before it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::auth::Credentials;
use super::hosts::{Capability, Host, servers};
use super::reference::Reference;
use super::server::{Ask, Blob, Body, Server, full, header, refusal, resolved, whole};
use crate::error::{Error, Result};
use crate::names::Digest;

/// Manifests and indexes that are understood.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";
/// What is read of a blob at once while it is sent.
const PIECE: usize = 64 << 10;

/// How a registry is spoken to.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http` or `https`; by default what suits the host.
    pub scheme: Option<String>,
    /// A folder of `hosts.toml` files.
    pub hosts: Option<PathBuf>,
    /// Sent with each request to a registry or its mirrors.
    pub headers: Vec<(String, String)>,
    pub credentials: Credentials,
    /// How long a registry may be silent.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            scheme: None,
            hosts: None,
            headers: Vec::new(),
            credentials: Credentials::None,
            patience: Duration::from_secs(30),
        }
    }
}

pub struct Registry {
    servers: Vec<Server>,
    host: String,
    repository: String,
}

/// A document with the digest of exactly these bytes.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A blob to be sent, as often as its beginning is asked for.
pub type Open = dyn Fn() -> Result<std::fs::File> + Send + Sync;

impl Registry {
    /// # Errors
    /// What is said of its servers cannot be read.
    pub fn new(reference: &Reference, options: &Options) -> Result<Registry> {
        let hosts = servers(reference, options.hosts.as_deref(), options.scheme.as_deref())?;
        let make = |host: Host| {
            let mirror_of = (!host.is_own(reference)).then(|| reference.host.clone());
            Server::new(host, mirror_of, options.credentials.clone(), &options.headers, options.patience)
        };
        let servers = hosts.into_iter().map(make).collect::<Result<_>>()?;
        Ok(Registry { servers, host: reference.host.clone(), repository: reference.repository.clone() })
    }

    /// A manifest or an index, by tag or digest. A digest that was asked for is checked.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` other bytes than asked for; `Unavailable`; `ResourceExhausted` too long.
    pub async fn manifest(&self, object: &str, expected: Option<&Digest>) -> Result<Manifest> {
        let name = format!("pulling {}/{}:{object}", self.host, self.repository);
        let capability = if expected.is_some() { Capability::Pull } else { Capability::Resolve };
        let to = format!("{}/manifests/{object}", self.repository);
        let scope = self.scope("pull");
        let scopes = [scope.as_str()];
        let ask = Ask::get(&to, &name, &scopes).accept(ACCEPTED);
        let (server, response) = self.first(capability, &ask).await?;
        let media_type = header(&response, &CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
        let told = header(&response, &HeaderName::from_static("docker-content-digest"));
        let bytes = whole(response, &name, server.patience()).await?;
        let digest = expected.map_or_else(|| Digest::of(&bytes), |expected| expected.same_kind(&bytes));
        for said in [expected.map_or("", Digest::as_str), told.as_str()] {
            let wrong = match Digest::parse(said) {
                Ok(said) => said.same_kind(&bytes) != said,
                Err(_) => !said.is_empty(),
            };
            if wrong {
                return Err(Error::FailedPrecondition(format!("{name}: its digest is {digest}, not {said}")));
            }
        }
        Ok(Manifest { media_type, digest, bytes })
    }

    /// A blob from byte `offset` on; also from where its descriptor says that it lies, if the registry does not have it.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn blob(&self, digest: &Digest, offset: u64, elsewhere: &[String]) -> Result<Blob> {
        let name = format!("pulling {}/{}@{digest}", self.host, self.repository);
        let to = format!("{}/blobs/{digest}", self.repository);
        let scope = self.scope("pull");
        let scopes = [scope.as_str()];
        let answer = self.first(Capability::Pull, &Ask::get(&to, &name, &scopes).from(offset)).await;
        let (server, response) = match answer {
            Err(Error::NotFound(_)) if !elsewhere.is_empty() => self.elsewhere(&name, offset, elsewhere).await?,
            answer => answer?,
        };
        if offset > 0 {
            let range = header(&response, &CONTENT_RANGE);
            if response.status() != StatusCode::PARTIAL_CONTENT || !range.starts_with(&format!("bytes {offset}-")) {
                return Err(Error::Unavailable(format!("{name}: the registry does not go on at byte {offset}")));
            }
        }
        Ok(Blob::new(response, &name, server.patience()))
    }

    /// Foreign layers: nothing of ours goes along, since it is not the registry that is asked.
    async fn elsewhere(&self, name: &str, offset: u64, urls: &[String]) -> Result<(&Server, Response<Incoming>)> {
        let server = self.servers.last().ok_or_else(|| Error::NotFound(name.to_owned()))?;
        let mut failed = Error::NotFound(name.to_owned());
        for url in urls.iter().filter(|url| url.starts_with("https://") || url.starts_with("http://")) {
            match server.send(&Ask::get(url, name, &[]).from(offset)).await {
                Ok(response) if response.status().is_success() => return Ok((server, response)),
                Ok(response) => failed = refusal(response.status(), name),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Asks the servers in order; the first one that has it answers. Of several failures the first that says more than
    /// "not here" is told.
    async fn first(&self, capability: Capability, ask: &Ask<'_>) -> Result<(&Server, Response<Incoming>)> {
        let mut failed: Option<Error> = None;
        for server in self.servers.iter().filter(|server| server.can(capability)) {
            let error = match server.send(ask).await {
                Ok(response) if response.status().is_success() => return Ok((server, response)),
                Ok(response) => refusal(response.status(), ask.name),
                Err(error) => error,
            };
            tracing::debug!("{}: {error}", server.authority());
            if failed.as_ref().is_none_or(|known| matches!(known, Error::NotFound(_))) {
                failed = Some(error);
            }
        }
        let none = || Error::NotFound(format!("{}: no server may be asked for it", ask.name));
        Err(failed.unwrap_or_else(none))
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.repository)
    }

    fn target(&self) -> Result<&Server> {
        let server = self.servers.iter().find(|server| server.can(Capability::Push));
        server.ok_or_else(|| Error::PermissionDenied(format!("{}: no server takes pushes", self.host)))
    }

    /// Whether the registry has a blob or a manifest.
    ///
    /// # Errors
    /// The registry's.
    pub async fn has(&self, kind: &str, object: &str, expected: &Digest) -> Result<bool> {
        let name = format!("pushing {}/{}@{expected}", self.host, self.repository);
        let to = format!("{}/{kind}/{object}", self.repository);
        let scope = self.scope("pull,push");
        let scopes = [scope.as_str()];
        let ask = Ask { method: Method::HEAD, ..Ask::get(&to, &name, &scopes).accept(ACCEPTED) };
        let response = self.target()?.send(&ask).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => {
                let told = header(&response, &HeaderName::from_static("docker-content-digest"));
                Ok(told.is_empty() && object == expected.as_str() || told == expected.as_str())
            }
            status => Err(refusal(status, &name)),
        }
    }

    /// Sends a blob, unless the registry takes it from another of its repositories. `sent` grows meanwhile.
    ///
    /// # Errors
    /// The registry's; `FailedPrecondition` it names a place for the bytes that may not be used.
    pub async fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        mounts: &[String],
        open: Arc<Open>,
        sent: Arc<AtomicU64>,
    ) -> Result<()> {
        let name = format!("pushing {}/{}@{digest}", self.host, self.repository);
        let server = self.target()?;
        let own = self.scope("pull,push");
        let mut to = format!("{}/blobs/uploads/", self.repository);
        let mut scopes = vec![own.as_str()];
        let from = mounts.iter().find(|from| **from != self.repository);
        let pull = from.map(|from| format!("repository:{from}:pull"));
        if let (Some(from), Some(pull)) = (from, &pull) {
            to = format!("{to}?mount={digest}&from={from}");
            scopes.push(pull);
        }
        let ask = Ask { method: Method::POST, ..Ask::get(&to, &name, &scopes) };
        let response = match server.send(&ask).await {
            // The token for both repositories may be refused where that for one is not.
            Err(Error::PermissionDenied(_)) if from.is_some() => {
                let to = format!("{}/blobs/uploads/", self.repository);
                server.send(&Ask { method: Method::POST, ..Ask::get(&to, &name, &[&own]) }).await?
            }
            answer => answer?,
        };
        match response.status() {
            StatusCode::CREATED => return Ok(()), // it was there, in the other repository
            StatusCode::ACCEPTED => {}
            status => return Err(refusal(status, &name)),
        }
        let base = format!("{}/blobs/uploads/", self.repository);
        let place = server.locate(&base, &header(&response, &LOCATION));
        let place = place.ok_or_else(|| {
            Error::FailedPrecondition(format!("{name}: the registry names no place for it, or one that is less safe"))
        })?;
        let separator = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{separator}digest={digest}");
        let counted = sent.clone();
        let body = move || {
            counted.store(0, Ordering::Relaxed);
            Ok(stream(open()?, counted.clone()))
        };
        let scopes = [own.as_str()];
        let mut ask =
            Ask { method: Method::PUT, body: Some(&body), sent: Some(sent), ..Ask::get(&place, &name, &scopes) };
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        ask.headers.insert(CONTENT_LENGTH, size.into());
        let response = server.send(&ask).await?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(response.status(), &name)) }
    }

    /// Sends a manifest or an index, by tag or digest.
    ///
    /// # Errors
    /// The registry's.
    pub async fn push_manifest(&self, object: &str, media_type: &str, bytes: Bytes) -> Result<()> {
        let name = format!("pushing {}/{}:{object}", self.host, self.repository);
        let server = self.target()?;
        let to = format!("{}/manifests/{object}", self.repository);
        let scope = self.scope("pull,push");
        let scopes = [scope.as_str()];
        let length = bytes.len() as u64;
        let body = move || Ok(full(bytes.clone()));
        let mut ask = Ask { method: Method::PUT, body: Some(&body), ..Ask::get(&to, &name, &scopes) };
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| Error::InvalidArgument(format!("{name}: {media_type:?} is not a media type")))?;
        ask.headers.insert(CONTENT_TYPE, media_type);
        ask.headers.insert(CONTENT_LENGTH, length.into());
        let response = server.send(&ask).await?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(response.status(), &name)) }
    }
}

impl Server {
    /// A place that an answer names, as a whole address: never less safe than the server itself.
    fn locate(&self, asked: &str, location: &str) -> Option<String> {
        let from = self.address_of(asked).parse().ok()?;
        resolved(&from, location).filter(|place| from.scheme_str() != Some("https") || place.starts_with("https://"))
    }
}

/// A file as a body, read by a thread where it keeps nobody waiting.
fn stream(mut file: std::fs::File, sent: Arc<AtomicU64>) -> Body {
    let (pieces, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = std::io::Read::read(&mut file, &mut piece).map(|length| {
                piece.truncate(length);
                piece
            });
            let ended = read.as_ref().is_ok_and(Vec::is_empty);
            let failed = read.is_err();
            if ended {
                return;
            }
            if let Ok(piece) = &read {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            let frame = read.map(|piece| Frame::data(Bytes::from(piece)));
            if pieces.blocking_send(frame).is_err() || failed {
                return; // the request has ended, or has been told
            }
        }
    });
    StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync()
}
