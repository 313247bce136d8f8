//! Bytes from a client that was upgraded to SPDY: however they are cut, the same streams come out, within their bounds.

use tare_manager::cri::streaming::spdy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// More headers than this no stream may have, in bytes.
const LONGEST_HEADERS: usize = 16 << 10;

/// A stream: its number, its headers in order, its bytes.
type Stream = (u32, Vec<(String, String)>, Vec<u8>);

pub fn try_input(input: &[u8]) {
    let whole = opened(input, input.len().max(1));
    let cut = opened(input, 1 + input.first().map_or(0, |byte| usize::from(*byte) % 16));
    assert_eq!(whole, cut, "cutting the bytes changes what they say");
    for (id, headers, _) in whole {
        assert!(id % 2 == 1, "stream {id} is the server's");
        let length: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(length <= LONGEST_HEADERS, "{length} bytes of headers");
    }
}

/// The streams that a client opens by these bytes, when they arrive through a pipe of `size`.
fn opened(input: &[u8], size: usize) -> Vec<Stream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime is had");
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(size);
        let (mut answers, mut sending) = tokio::io::split(client);
        let input = input.to_vec();
        tokio::spawn(async move {
            let _ = sending.write_all(&input).await;
            let _ = sending.shutdown().await;
        });
        tokio::spawn(async move {
            let mut rest = Vec::new();
            answers.read_to_end(&mut rest).await
        });
        let (_session, mut opened) = spdy::serve(server).expect("the dictionary is taken");
        let mut reading = Vec::new();
        while let Some(mut stream) = opened.recv().await {
            reading.push(tokio::spawn(async move {
                let mut bytes = Vec::new();
                let _ = stream.io.read_to_end(&mut bytes).await;
                let mut headers: Vec<(String, String)> = stream.headers.into_iter().collect();
                headers.sort();
                (stream.id, headers, bytes)
            }));
        }
        let mut streams = Vec::new();
        for stream in reading {
            streams.push(stream.await.expect("reading does not panic"));
        }
        streams
    })
}
