//! Bytes from a client: however they are cut, the same requests and refusals come out, none longer than a frame may be.

use tare_proto::ttrpc::frame::LONGEST;
use tare_proto::ttrpc::server::{Incoming, Server};

pub fn try_input(input: &[u8]) {
    let whole = taken(input, input.len().max(1));
    let cut = taken(input, 1 + input.first().map_or(0, |byte| usize::from(*byte) % 16));
    assert_eq!(whole, cut, "cutting the bytes changes what they say");
}

/// What comes out of `input` when it arrives in pieces of `size`.
fn taken(input: &[u8], size: usize) -> Vec<(u32, Vec<u8>)> {
    let mut server = Server::default();
    let mut out = Vec::new();
    let mut last = 0;
    for piece in input.chunks(size) {
        server.push(piece);
        while let Some(incoming) = server.take() {
            out.push(match incoming {
                Incoming::Request { stream, request } => {
                    assert!(stream % 2 == 1 && stream > last, "stream {stream} after {last}");
                    last = stream;
                    (stream, request.payload)
                }
                Incoming::Refused(frame) => (0, frame),
            });
        }
    }
    assert!(out.iter().all(|(_, bytes)| bytes.len() <= LONGEST), "more came out than a frame may hold");
    out
}
