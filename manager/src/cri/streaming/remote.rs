//! Exec and attach: a client's streams by their names, a program's end, and what the client is told of it.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Work;
use super::negotiate::coding;
use super::session::Session;
use super::status::Form;
use super::token::{Ticket, Wants};
use super::{spdy, websocket};
use crate::cri::exec::Streams;
use crate::error::{Error, Result};

/// How long a client may take to open its streams.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long output may take to reach the client after the program has ended.
const DRAIN: Duration = Duration::from_secs(30);
/// A window's size as JSON is no longer.
const LONGEST_SIZE: usize = 4096;

/// What a client has opened.
pub struct Client {
    pub session: Session,
    pub form: Form,
    pub stdin: Option<DuplexStream>,
    pub stdout: Option<DuplexStream>,
    pub stderr: Option<DuplexStream>,
    pub error: DuplexStream,
    pub resize: Option<DuplexStream>,
    /// End when what was written to the outputs is on its way.
    pub flushed: Vec<JoinHandle<()>>,
}

/// Does what the ticket says, to its end or the client's.
pub async fn serve(mut client: Client, ticket: Ticket, work: impl Work) {
    let (sizes, resized) = mpsc::channel(1);
    let resizing = client.resize.take().map(|resize| tokio::spawn(follow(resize, sizes)));
    let (stdin, our_side) = client.stdin.take().map(tokio::io::split).unzip();
    let streams = Streams {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: client.stdout.take().map(|stdout| Box::new(stdout) as _),
        stderr: client.stderr.take().map(|stderr| Box::new(stderr) as _),
        sizes: resized,
    };
    let outcome = tokio::select! {
        outcome = run(ticket, streams, work) => Some(outcome),
        () = client.session.gone() => None,
    };
    if let Some(resizing) = resizing {
        resizing.abort();
    }
    let Some(outcome) = outcome else { return };
    if let Some(mut stdin) = our_side {
        let _ = stdin.shutdown().await; // whoever still waits for input must not keep the connection open
    }
    for output in client.flushed {
        let _ = timeout(DRAIN, output).await; // so that the end comes last, as some clients need it
    }
    let end = match outcome {
        Ok(code) => client.form.of_exit(code),
        Err(error) => client.form.of_error(&error),
    };
    let _ = client.error.write_all(&end).await; // a client that has gone does not need it
    drop(client.error);
    client.session.close().await;
}

async fn run(ticket: Ticket, streams: Streams, work: impl Work) -> Result<i32> {
    match ticket {
        Ticket::Exec { container, args, wants } => work.exec(&container, &args, wants.tty, streams).await,
        Ticket::Attach { container, .. } => work.attach(&container, streams).await.map(|()| 0),
        Ticket::PortForward { .. } => Err(Error::Internal("a port has no exit code".into())),
    }
}

/// Takes a SPDY connection's streams, all that the request wants and none beside.
pub async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    wants: Wants,
    protocol: &str,
) -> std::result::Result<Client, spdy::Broken> {
    let version = protocol.strip_prefix('v').and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(1);
    let form = if version >= 4 { Form::Json } else { Form::Text };
    let (session, mut opened) = spdy::serve(io)?;
    let mut expected = vec!["error"];
    let resizes = wants.tty && version >= 3;
    for (stream, wanted) in
        [("stdin", wants.stdin), ("stdout", wants.stdout), ("stderr", wants.stderr), ("resize", resizes)]
    {
        if wanted {
            expected.push(stream);
        }
    }
    let mut streams = std::collections::HashMap::new();
    let mut flushed = Vec::new();
    let all = async {
        while !expected.is_empty() {
            let stream = opened.recv().await.ok_or(spdy::Broken("it went before all its streams were there"))?;
            let name = stream.headers.get("streamtype").map(String::as_str).unwrap_or_default();
            let place = expected.iter().position(|expected| *expected == name);
            let name = expected.swap_remove(place.ok_or(spdy::Broken("a stream that was not asked for"))?);
            if matches!(name, "stdout" | "stderr") {
                flushed.push(stream.flushed);
            }
            streams.insert(name, stream.io);
        }
        Ok(())
    };
    timeout(PATIENCE, all).await.map_err(|_| spdy::Broken("its streams did not come"))??;
    Ok(Client {
        form,
        stdin: streams.remove("stdin"),
        stdout: streams.remove("stdout"),
        stderr: streams.remove("stderr"),
        error: streams.remove("error").ok_or(spdy::Broken("no error stream"))?,
        resize: streams.remove("resize"),
        flushed,
        session,
    })
}

/// Takes a WebSocket's channels: 0 to 4 are stdin, stdout, stderr, error and resize.
pub fn over_websocket(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    wants: Wants,
    protocol: &str,
) -> Option<Client> {
    let form = if protocol.starts_with('v') { Form::Json } else { Form::Text };
    let hello = if wants.stdout {
        1
    } else if wants.stderr {
        2
    } else {
        3
    };
    let (session, channels) = websocket::channels(io, coding(protocol), 5, Some(hello));
    let [stdin, stdout, stderr, error, resize] = channels.try_into().ok()?;
    let mut flushed = Vec::new();
    let mut output = |channel: websocket::Channel, wanted: bool| {
        wanted.then(|| {
            flushed.push(channel.flushed);
            channel.io
        })
    };
    let (stdout, stderr) = (output(stdout, wants.stdout), output(stderr, wants.stderr));
    Some(Client {
        session,
        form,
        stdin: wants.stdin.then_some(stdin.io),
        stdout,
        stderr,
        error: error.io,
        resize: wants.tty.then_some(resize.io),
        flushed,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(alias = "Width")]
    width: u16,
    #[serde(alias = "Height")]
    height: u16,
}

/// Reads sizes and passes on the newest: nobody needs those between.
async fn follow(mut resize: DuplexStream, sizes: mpsc::Sender<(u16, u16)>) {
    let (mut text, mut piece, mut newest) = (Vec::new(), [0; 512], None);
    loop {
        tokio::select! {
            read = resize.read(&mut piece) => {
                let Ok(length @ 1..) = read else { break };
                text.extend_from_slice(&piece[..length]);
                newest = take_sizes(&mut text).or(newest);
                if text.len() > LONGEST_SIZE {
                    break;
                }
            }
            room = sizes.reserve(), if newest.is_some() => match (room, newest.take()) {
                (Ok(room), Some(size)) => room.send((size.width, size.height)),
                _ => break,
            },
        }
    }
    if let Some(size) = newest {
        let _ = sizes.send((size.width, size.height)).await;
    }
}

/// Takes whole sizes from the front of a text; returns the last of them.
fn take_sizes(text: &mut Vec<u8>) -> Option<Size> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut newest, mut used) = (None, 0);
    while let Some(Ok(size)) = sizes.next() {
        (newest, used) = (Some(size), sizes.byte_offset());
    }
    text.drain(..used);
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_sizes_the_last_whole_one_counts() {
        let mut text = br#"{"Width":80,"Height":24}
{"Width":100,"Height":30}{"Wid"#
            .to_vec();
        assert_eq!(take_sizes(&mut text), Some(Size { width: 100, height: 30 }));
        assert_eq!(text, br#"{"Wid"#);
        text.extend(br#"th":1,"Height":2}"#);
        assert_eq!(take_sizes(&mut text), Some(Size { width: 1, height: 2 }));
        assert!(text.is_empty());
    }
}
