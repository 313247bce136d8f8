//! The HTTP side: a token for a ticket, an upgrade to one of the protocols, and nothing else. It never redirects, and a
//! connection whose upgrade fails is closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tare_proto::runtime::v1 as pb;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::negotiate::{self, Protocol};
use super::token::{Ticket, Tokens, Wants};
use super::{Work, forward, remote, tls, websocket};
use crate::error::{Doing as _, Error, Result};

/// A connection that has not sent its request by then is closed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections at once.
const MOST: usize = 1000;

/// The `[cri.streaming]` table of the daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where kubelets come with their tokens: this machine only, unless they run elsewhere.
    pub address: std::net::IpAddr,
    /// 0 for any that is free.
    pub port: u16,
    /// PEM files; with them the server speaks TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Settings {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        Settings { address, port: 0, tls_certificate: None, tls_key: None }
    }
}

/// Gives out URLs. Clones share the tokens.
#[derive(Clone)]
pub struct Server {
    tokens: Tokens,
    base: Arc<str>,
}

impl Server {
    /// Listens; requests are served on tasks of their own until the returned task is aborted.
    ///
    /// # Errors
    /// The address is taken, or the TLS files cannot be read.
    pub async fn start(settings: &Settings, work: impl Work) -> Result<(Server, tokio::task::JoinHandle<()>)> {
        let acceptor = match (&settings.tls_certificate, &settings.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
            (None, None) => None,
            _ => {
                let text = "cri.streaming: tls_certificate and tls_key go together";
                return Err(Error::InvalidArgument(text.into()));
            }
        };
        let address = SocketAddr::new(settings.address, settings.port);
        let listener =
            TcpListener::bind(address).await.doing(|| format!("binding the streaming server to {address}"))?;
        let bound = listener.local_addr().doing(|| "asking for the streaming server's address".into())?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let server = Server { tokens: Tokens::default(), base: format!("{scheme}://{bound}").into() };
        tracing::info!(address = %server.base, "streaming");
        let serving = tokio::spawn(server.clone().serve(listener, acceptor, work));
        Ok((server, serving))
    }

    /// # Errors
    /// `InvalidArgument`: no command, or streams that cannot be; `ResourceExhausted`.
    pub fn exec(&self, request: pb::ExecRequest) -> Result<String> {
        if request.cmd.is_empty() {
            return Err(Error::InvalidArgument("cmd must not be empty".into()));
        }
        let wants =
            Wants { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }.check()?;
        self.url("exec", Ticket::Exec { container: request.container_id, args: request.cmd, wants })
    }

    /// # Errors
    /// `InvalidArgument`: streams that cannot be; `ResourceExhausted`.
    pub fn attach(&self, request: pb::AttachRequest) -> Result<String> {
        let wants =
            Wants { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }.check()?;
        self.url("attach", Ticket::Attach { container: request.container_id, wants })
    }

    /// # Errors
    /// `InvalidArgument`: a port that is none; `ResourceExhausted`.
    pub fn port_forward(&self, request: pb::PortForwardRequest) -> Result<String> {
        let port = |port: &i32| {
            let number = u16::try_from(*port).ok().filter(|port| *port > 0);
            number.ok_or_else(|| Error::InvalidArgument(format!("port: {port} is none")))
        };
        let ports = request.port.iter().map(port).collect::<Result<Vec<u16>>>()?;
        self.url("portforward", Ticket::PortForward { sandbox: request.pod_sandbox_id, ports })
    }

    fn url(&self, path: &str, ticket: Ticket) -> Result<String> {
        Ok(format!("{}/{path}/{}", self.base, self.tokens.issue(ticket)?))
    }

    async fn serve(self, listener: TcpListener, acceptor: Option<TlsAcceptor>, work: impl Work) {
        let room = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!("accepting a streaming client: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await; // too many files: let some be closed
                    continue;
                }
            };
            let (server, acceptor, work) = (self.clone(), acceptor.clone(), work.clone());
            tokio::spawn(async move {
                server.connection(socket, acceptor, work).await;
                drop(place);
            });
        }
    }

    async fn connection(self, socket: TcpStream, acceptor: Option<TlsAcceptor>, work: impl Work) {
        let _ = socket.set_nodelay(true); // slower without, and no less right
        match acceptor {
            None => self.http(socket, work).await,
            Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await {
                Ok(Ok(tls)) => self.http(tls, work).await,
                Ok(Err(error)) => tracing::debug!("a streaming client's TLS: {error}"),
                Err(_) => {}
            },
        }
    }

    /// One request; if it is upgraded the connection is the client's until either has ended.
    async fn http(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, work: impl Work) {
        let (streaming, mut upgraded) = tokio::sync::mpsc::channel(1);
        let service = service_fn(|mut request: Request<Incoming>| {
            let answer = match self.admit(&request) {
                Ok((ticket, protocol)) => {
                    let upgrade = hyper::upgrade::on(&mut request);
                    let answer = switching(request.headers(), &protocol);
                    let _ = streaming.try_send((ticket, protocol, upgrade)); // there is one request
                    answer
                }
                Err((status, why)) => refusal(status, why),
            };
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            return tracing::debug!("a streaming client: {error}");
        }
        let Ok((ticket, protocol, upgrade)) = upgraded.try_recv() else { return };
        match upgrade.await {
            Ok(io) => stream(TokioIo::new(io), ticket, protocol, work).await,
            Err(error) => tracing::debug!("a streaming client's upgrade: {error}"),
        }
    }

    /// The ticket of a request, and the protocol that both speak. The token is used up, whatever follows.
    fn admit(&self, request: &Request<Incoming>) -> std::result::Result<(Ticket, Protocol), (StatusCode, String)> {
        let not_found = || (StatusCode::NOT_FOUND, "not found".to_owned());
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "GET and POST are allowed".into()));
        }
        let (path, token) =
            request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).ok_or_else(not_found)?;
        let ticket = self.tokens.redeem(token).ok_or_else(not_found)?;
        let right = match ticket {
            Ticket::Exec { .. } => path == "exec",
            Ticket::Attach { .. } => path == "attach",
            Ticket::PortForward { .. } => path == "portforward",
        };
        if !right {
            return Err(not_found());
        }
        let forwards = matches!(ticket, Ticket::PortForward { .. });
        let protocol = negotiate::protocol(request.headers(), forwards)?;
        Ok((ticket, protocol))
    }
}

/// The answer after which the connection speaks another protocol.
fn switching(request: &HeaderMap, protocol: &Protocol) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    match protocol {
        Protocol::Spdy { name } => {
            put("upgrade", "SPDY/3.1");
            if !name.is_empty() {
                put(negotiate::STREAM_PROTOCOL, name);
            }
        }
        Protocol::WebSocket { name } => {
            let key = request.get("sec-websocket-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
            put("upgrade", "websocket");
            put("sec-websocket-accept", &websocket::accept(key));
            if !name.is_empty() {
                put("sec-websocket-protocol", name);
            }
        }
    }
    answer
}

fn refusal(status: StatusCode, why: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(why + "\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

async fn stream(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ticket: Ticket,
    protocol: Protocol,
    work: impl Work,
) {
    match (ticket, protocol) {
        (Ticket::PortForward { sandbox, .. }, Protocol::Spdy { .. }) => forward::over_spdy(io, sandbox, work).await,
        (Ticket::PortForward { sandbox, ports }, Protocol::WebSocket { name }) => {
            if name == negotiate::TUNNEL {
                return forward::over_spdy(websocket::tunnel(io), sandbox, work).await;
            }
            forward::over_channels(io, negotiate::coding(&name), &ports, sandbox, work).await;
        }
        (ticket @ (Ticket::Exec { wants, .. } | Ticket::Attach { wants, .. }), Protocol::Spdy { name }) => {
            match remote::over_spdy(io, wants, &name).await {
                Ok(client) => remote::serve(client, ticket, work).await,
                Err(error) => tracing::debug!("a streaming client: {error}"),
            }
        }
        (ticket @ (Ticket::Exec { wants, .. } | Ticket::Attach { wants, .. }), Protocol::WebSocket { name }) => {
            match remote::over_websocket(io, wants, &name) {
                Some(client) => remote::serve(client, ticket, work).await,
                None => tracing::debug!("a streaming client without its channels"),
            }
        }
    }
}
