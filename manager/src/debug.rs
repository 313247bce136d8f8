//! What an operator asks the running daemon over HTTP: counts, on a socket or a port, and on the socket the log level.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::config::Level;
use crate::metrics::Metrics;

/// Changes how much is logged.
pub type SetLevel = Arc<dyn Fn(Level) -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
pub struct Debug {
    pub metrics: Metrics,
    /// Only whoever may connect to the socket may change something.
    pub set_level: Option<SetLevel>,
}

impl Debug {
    /// Answers every connection until the future is dropped.
    pub async fn on_socket(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.clone().talk(stream),
                Err(error) => pause(&error).await,
            }
        }
    }

    /// The same on a port.
    pub async fn on_port(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.clone().talk(stream),
                Err(error) => pause(&error).await,
            }
        }
    }

    fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let own = self.clone();
                async move { Ok::<_, Infallible>(own.answer(request).await) }
            });
            // An error here is the client's, who knows of it.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics" | "/v1/metrics") => text(StatusCode::OK, self.metrics.show()),
            (&Method::PUT, "/log-level") if self.set_level.is_some() => self.level(request).await,
            _ => text(StatusCode::NOT_FOUND, "no such page\n".into()),
        }
    }

    async fn level(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        const LONGEST: usize = 100;
        let Ok(body) = Limited::new(request.into_body(), LONGEST).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "a level is one word\n".into());
        };
        let body = body.to_bytes();
        let word = String::from_utf8_lossy(&body);
        let Ok(level) = <Level as clap::ValueEnum>::from_str(word.trim(), true) else {
            return text(StatusCode::BAD_REQUEST, "levels are trace, debug, info, warn, error\n".into());
        };
        match self.set_level.as_ref().map(|set| set(level)) {
            Some(Ok(())) => text(StatusCode::OK, String::new()),
            Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            None => text(StatusCode::NOT_FOUND, String::new()),
        }
    }
}

/// Out of descriptors, most likely; the next attempt would fail at once and spin.
async fn pause(error: &std::io::Error) {
    tracing::error!("accepting a connection for metrics: {error}");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; version=0.0.4"));
    answer
}
