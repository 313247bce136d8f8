//! Connections to registries: through a proxy where the environment names one, and with the certificates that a server asks
//! for.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use hyper::Uri;
use hyper::rt::ReadBufCursor;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::Service;

use super::hosts::Host;
use super::reference::is_local;
use crate::error::{Error, Result};

/// # Errors
/// A certificate cannot be read.
pub fn connector(host: &Host) -> Result<HttpsConnector<Dialer>> {
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls(host)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Dialer::new()))
}

fn tls(host: &Host) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Internal(format!("setting up TLS: {error}")))?;
    let config = if host.skip_verify {
        config.dangerous().with_custom_certificate_verifier(Arc::new(Trusting(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let mut named = Vec::new();
        for file in &host.ca {
            for certificate in certificates(file)? {
                roots.add(certificate.clone()).map_err(|error| unreadable(file, &error))?;
                named.push(certificate);
            }
        }
        let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::Internal(format!("reading the certificates that this machine trusts: {error}")))?;
        let verifier = Named { by_authority, named };
        config.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    match host.clients.as_slice() {
        [] => Ok(config.with_no_client_auth()),
        [(certificate, key), ..] => {
            let key = key.as_ref().unwrap_or(certificate);
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            config
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(|error| unreadable(certificate, &error))
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let list = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let list = list.map_err(|error| unreadable(file, &error))?;
    if list.is_empty() {
        return Err(Error::InvalidArgument(format!("{} holds no certificate", file.display())));
    }
    Ok(list)
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("reading {}: {error}", file.display()))
}

/// Takes what an authority vouches for, and the very certificates that were named as trusted: a registry that signed its
/// own, as many do, has one that says it is an authority, which by the rules no server is.
#[derive(Debug)]
struct Named {
    by_authority: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        status: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let vouched = self.by_authority.verify_server_cert(certificate, between, name, status, now);
        match vouched {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if self.named.contains(certificate) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

/// Takes any certificate, as `skip_verify` asks; that the other side has its key is still checked.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens connections, directly or through the proxy that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` name; never
/// through one to this machine itself.
#[derive(Clone)]
pub struct Dialer {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Dialer {
    fn new() -> Dialer {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false); // TLS is around it
        direct.set_nodelay(true);
        Dialer { direct, proxies: Arc::new(Matcher::from_env()) }
    }
}

/// The proxy for an address, and what it wants to be told.
fn proxy(proxies: &Matcher, to: &Uri) -> Option<Intercept> {
    if is_local(to.authority()?.as_str()) { None } else { proxies.intercept(to) }
}

impl Service<Uri> for Dialer {
    type Response = Dialed;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Dialed, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), Failure>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let proxy = proxy(&self.proxies, &to);
        let mut direct = self.direct.clone();
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Dialed { io: direct.call(to).await?, absolute: false });
            };
            if proxy.uri().scheme_str() != Some("http") {
                return Err(format!("a proxy that speaks {}", proxy.uri().scheme_str().unwrap_or_default()).into());
            }
            let io = direct.call(proxy.uri().clone()).await?;
            if to.scheme_str() != Some("https") {
                return Ok(Dialed { io, absolute: true });
            }
            Ok(Dialed { io: tunnel(io, &to, &proxy).await?, absolute: false })
        })
    }
}

/// Source: RFC 9110, "CONNECT".
async fn tunnel(
    io: TokioIo<TcpStream>,
    to: &Uri,
    proxy: &Intercept,
) -> std::result::Result<TokioIo<TcpStream>, Failure> {
    const LONGEST: usize = 16 << 10;
    let mut io = io.into_inner();
    let place = format!("{}:{}", to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some((name, password)) = proxy.raw_auth() {
        let secret = base64::prelude::BASE64_STANDARD.encode(format!("{name}:{password}"));
        request += &format!("Proxy-Authorization: Basic {secret}\r\n");
    }
    request += "\r\n";
    io.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > LONGEST {
            return Err("the proxy's answer is too long".into());
        }
        answer.push(io.read_u8().await?);
    }
    let first = String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    match first.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(TokioIo::new(io)),
        _ => Err(format!("the proxy refuses: {first}").into()),
    }
}

/// A connection. To a proxy that passes requests on, they name the whole address.
pub struct Dialed {
    io: TokioIo<TcpStream>,
    absolute: bool,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.absolute)
    }
}

impl hyper::rt::Read for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        let proxies = Matcher::builder().all("http://proxy.example:3128").no("inside.example").build();
        for (address, through) in [
            ("https://registry.example/v2/", true),
            ("http://127.0.0.1:5000/v2/", false),
            ("http://localhost:5000/v2/", false),
            ("https://inside.example/v2/", false),
        ] {
            assert_eq!(proxy(&proxies, &address.parse().unwrap()).is_some(), through, "{address}");
        }
    }
}
