//! Port forward: for each connection of the client a stream of data and one for what goes wrong.
//!
//! Source: kubernetes/streaming pkg/cri portforward.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinSet;

use super::Work;
use super::spdy::{self, Stream};
use super::websocket::{self, Coding};

/// How long the second stream of a pair may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection that the client wants.
struct Pair {
    since: Instant,
    port: u16,
    data: Option<DuplexStream>,
    error: Option<DuplexStream>,
}

/// Connects each pair of a SPDY connection, until the client goes.
pub async fn over_spdy(io: impl AsyncRead + AsyncWrite + Send + 'static, sandbox: String, work: impl Work) {
    let (mut session, mut opened) = match spdy::serve(io) {
        Ok(served) => served,
        Err(error) => return tracing::debug!("forwarding to {sandbox}: {error}"),
    };
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            stream = opened.recv() => {
                let Some(stream) = stream else { break };
                if let Some(pair) = add(&mut pairs, stream) {
                    running.spawn(connect(sandbox.clone(), pair, work.clone()));
                }
            }
            Some(_) = running.join_next() => {}
            () = tokio::time::sleep(PATIENCE), if !pairs.is_empty() => {
                pairs.retain(|_, pair| pair.since.elapsed() < PATIENCE);
            }
            () = session.gone() => break,
        }
    }
    // What still runs ends with the set, and with it the other ends of the connections.
}

/// Puts a stream to its other half; returns the pair when it is whole. What is no such stream is closed.
fn add(pairs: &mut HashMap<String, Pair>, stream: Stream) -> Option<Pair> {
    let header = |name: &str| stream.headers.get(name).map(String::as_str);
    let port = header("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0)?;
    let is_error = match header("streamtype") {
        Some("error") => true,
        Some("data") => false,
        _ => return None,
    };
    // Clients before request ids opened the error stream first, and data as the next one.
    let old = if is_error { stream.id } else { stream.id.wrapping_sub(2) };
    let id = header("requestid").map_or_else(|| format!("stream {old}"), str::to_owned);
    let pair = pairs.entry(id.clone()).or_insert(Pair { since: Instant::now(), port, data: None, error: None });
    let half = if is_error { &mut pair.error } else { &mut pair.data };
    if pair.port != port || half.is_some() {
        return None;
    }
    *half = Some(stream.io);
    let whole = pair.data.is_some() && pair.error.is_some();
    whole.then(|| pairs.remove(&id)).flatten()
}

async fn connect(sandbox: String, pair: Pair, work: impl Work) {
    let (Some(data), Some(mut error)) = (pair.data, pair.error) else { return };
    if let Err(why) = work.forward(&sandbox, pair.port, data).await {
        let text = format!("error forwarding port {} to pod {sandbox}: {why}", pair.port);
        let _ = error.write_all(text.as_bytes()).await; // the client may have gone
    }
}

/// Connects ports over WebSocket as clients did before there was a tunnel: two channels for each port, of data and of what
/// goes wrong, each beginning with the port.
pub async fn over_channels(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    coding: Coding,
    ports: &[u16],
    sandbox: String,
    work: impl Work,
) {
    let Ok(count) = u8::try_from(ports.len() * 2) else { return tracing::debug!("too many ports for channels") };
    let (mut session, channels) = websocket::channels(io, coding, count, None);
    let mut channels = channels.into_iter().map(|channel| channel.io);
    let mut running = JoinSet::new();
    for &port in ports {
        let (Some(mut data), Some(mut error)) = (channels.next(), channels.next()) else { return };
        let (sandbox, work) = (sandbox.clone(), work.clone());
        running.spawn(async move {
            for channel in [&mut data, &mut error] {
                if channel.write_all(&port.to_le_bytes()).await.is_err() {
                    return;
                }
            }
            connect(sandbox, Pair { since: Instant::now(), port, data: Some(data), error: Some(error) }, work).await;
        });
    }
    let all = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = session.gone() => return,
    }
    session.close().await;
}
