//! Clients that name a Unix socket as the host they talk to.
//!
//! Over a Unix socket many gRPC libraries send the socket's path as `:authority` (older kubelets and crictl, grpcurl, grpc-java).
//! That is no authority (RFC 9110, 4.2.3), and our HTTP/2 library refuses it as a protocol error before a handler could see
//! it; the peer's does not. So a connection is read through this filter: it looks at the first block of header fields, and
//! if the authority is in order it steps aside. If not, it writes `localhost` there, in this block and in those that follow.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What a client sends before its first frame. Source: RFC 9113, 3.4.
const PREFACE: usize = 24;
/// Length, kind, flags, stream. Source: RFC 9113, 4.1.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame that we have not asked for more than. Source: RFC 9113, 4.2.
const LARGEST: usize = 16_384;
/// What a block of header fields may take, and so what is kept here of a connection; each byte may stand for a field of
/// 4 KiB. What is longer goes by unread.
const PATIENCE: usize = HEAD + LARGEST;

/// A connection whose client may give any authority.
pub struct Lenient<S> {
    inner: S,
    filter: Option<Filter>,
}

impl<S> Lenient<S> {
    pub fn new(inner: S) -> Lenient<S> {
        Lenient { inner, filter: Some(Filter::default()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Some(filter) = &mut this.filter else { return Pin::new(&mut this.inner).poll_read(context, out) };
            if !filter.ready.is_empty() {
                let count = filter.ready.len().min(out.remaining());
                out.put_slice(&filter.ready[..count]);
                filter.ready.drain(..count);
                return Poll::Ready(Ok(()));
            }
            if filter.aside {
                this.filter = None;
                continue;
            }
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                filter.step_aside(); // the end, in the middle of a frame perhaps
                if filter.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            filter.take(read.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: Connected> Connected for Lenient<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

/// Bytes on their way from a client to the HTTP/2 library.
#[derive(Default)]
struct Filter {
    /// Past the preface.
    begun: bool,
    /// An authority was replaced, so that the library and the client no longer share a table of header fields.
    rewriting: bool,
    /// Nothing more is to be done.
    aside: bool,
    decoder: Decoder<'static>,
    /// Read and not yet understood: less than a frame, or less than a block of header fields.
    pending: Vec<u8>,
    /// To be handed on.
    ready: Vec<u8>,
}

impl Filter {
    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if !self.begun && self.pending.len() >= PREFACE {
            self.begun = true;
            self.hand_on(PREFACE);
        }
        while self.begun && !self.aside {
            let Some(head) = Head::of(&self.pending) else { break };
            if head.kind == HEADERS {
                match Block::of(&self.pending) {
                    Some(block) => self.block(&block),
                    None if self.pending.len() > PATIENCE => self.step_aside(),
                    None => break,
                }
            } else if head.length > LARGEST {
                self.step_aside(); // the library refuses it
            } else if self.pending.len() >= HEAD + head.length {
                self.hand_on(HEAD + head.length);
            } else {
                break;
            }
        }
    }

    /// One whole block of header fields stands at the front.
    fn block(&mut self, block: &Block) {
        let Ok(mut fields) = self.decoder.decode(&block.fields) else { return self.step_aside() };
        let wrong = fields.iter_mut().find(|(name, value)| name == b":authority" && !is_authority(value));
        if let Some((_, value)) = wrong {
            *value = b"localhost".to_vec();
            self.rewriting = true;
        }
        if !self.rewriting {
            return self.step_aside();
        }
        self.pending.drain(..block.length);
        block.write(&fields, &mut self.ready);
    }

    fn hand_on(&mut self, count: usize) {
        self.ready.extend(self.pending.drain(..count));
    }

    fn step_aside(&mut self) {
        self.ready.append(&mut self.pending);
        self.aside = true;
    }
}

fn is_authority(value: &[u8]) -> bool {
    hyper::http::uri::Authority::try_from(value).is_ok()
}

/// The first bytes of a frame.
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
}

impl Head {
    fn of(bytes: &[u8]) -> Option<Head> {
        let [a, b, c, kind, flags, ..] = *bytes.get(..HEAD)? else { return None };
        Some(Head { length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c), kind, flags })
    }
}

/// A HEADERS frame with the CONTINUATION frames that belong to it.
struct Block {
    /// Of all its frames.
    length: usize,
    end_stream: bool,
    stream: [u8; 4],
    /// Without padding and priority, still compressed.
    fields: Vec<u8>,
}

impl Block {
    /// The block at the front, if it is there whole. One that is not well formed is passed on as it is: it has no fields.
    fn of(bytes: &[u8]) -> Option<Block> {
        let head = Head::of(bytes)?;
        let mut payload = bytes.get(HEAD..HEAD + head.length)?;
        let mut cut = |count: usize| payload = payload.get(count..).unwrap_or_default();
        let padding = if head.flags & PADDED == 0 { 0 } else { usize::from(*bytes.get(HEAD)?) };
        cut(usize::from(head.flags & PADDED != 0));
        cut(if head.flags & PRIORITY == 0 { 0 } else { 5 });
        let mut fields = payload[..payload.len().saturating_sub(padding)].to_vec();
        let mut length = HEAD + head.length;
        let mut last = head.flags & END_HEADERS != 0;
        while !last {
            let next = Head::of(bytes.get(length..)?)?;
            if next.kind != CONTINUATION {
                break;
            }
            fields.extend(bytes.get(length + HEAD..length + HEAD + next.length)?);
            length += HEAD + next.length;
            last = next.flags & END_HEADERS != 0;
        }
        let stream = bytes[5..HEAD].try_into().expect("four bytes");
        Some(Block { length, end_stream: head.flags & END_STREAM != 0, stream, fields })
    }

    /// Writes the block anew, with fields that refer to no table. Source: RFC 7541, 6.2.2.
    fn write(&self, fields: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            write_text(name, &mut block);
            write_text(value, &mut block);
        }
        let parts: Vec<&[u8]> = block.chunks(LARGEST).collect();
        for (index, part) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            let mut flags = if last { END_HEADERS } else { 0 };
            if index == 0 && self.end_stream {
                flags |= END_STREAM;
            }
            let [_, .., a, b, c] = part.len().to_be_bytes();
            out.extend([a, b, c, kind, flags]);
            out.extend(self.stream);
            out.extend_from_slice(part);
        }
    }
}

/// A string as it is: its length in the low seven bits, and bytes of seven bits more. Source: RFC 7541, 5.1 and 5.2.
fn write_text(text: &[u8], out: &mut Vec<u8>) {
    const FULL: usize = 0x7f;
    if text.len() < FULL {
        out.push(text.len() as u8);
    } else {
        out.push(FULL as u8);
        let mut rest = text.len() - FULL;
        while rest > FULL {
            out.push((rest & FULL) as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, .., a, b, c] = payload.len().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Two requests as a client sends them: the second one refers to the first one's fields by the table's number.
    fn conversation(authority: &[u8]) -> Vec<u8> {
        let mut first = vec![0x83, 0x86, 0x44, 2, b'/', b'x', 0x41]; // POST, http, :path literal, :authority literal
        write_text(authority, &mut first);
        let second = [0x83, 0x86, 0xbf, 0xbe]; // entries 63 and 62 of the table: :path, :authority
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[]),
            frame(HEADERS, 0, &first[..3]),
            frame(CONTINUATION, END_HEADERS, &first[3..]),
            frame(0, END_STREAM, b"data"),
            frame(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED | PRIORITY,
                &[&[2, 0, 0, 0, 0, 9][..], &second, &[0, 0]].concat(),
            ),
        ]
        .concat()
    }

    async fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { client.write_all(&bytes).await });
        let mut out = Vec::new();
        Lenient::new(server).read_to_end(&mut out).await.unwrap();
        out
    }

    #[tokio::test]
    async fn a_connection_with_an_authority_goes_by_as_it_is() {
        for authority in [&b"localhost"[..], b"10.0.0.1:80"] {
            let sent = conversation(authority);
            assert_eq!(through(&sent, 7).await, sent);
        }
    }

    #[tokio::test]
    async fn a_socket_in_the_place_of_an_authority_becomes_localhost_in_every_request() {
        for authority in [&b"/run/tared/tared.sock"[..], b"%2Frun%2Ftared.sock", b""] {
            for piece in [1, 5, 4096] {
                let got = through(&conversation(authority), piece).await;
                let (mut decoder, mut rest, mut seen, mut data) =
                    (Decoder::new(), &got[PREFACE..], Vec::new(), Vec::new());
                while let Some(head) = Head::of(rest) {
                    let payload = &rest[HEAD..HEAD + head.length];
                    match head.kind {
                        HEADERS => {
                            assert_eq!(head.flags & (END_HEADERS | PADDED | PRIORITY), END_HEADERS);
                            seen.push((head.flags & END_STREAM != 0, decoder.decode(payload).unwrap()));
                        }
                        0 => data.extend_from_slice(payload),
                        _ => assert_eq!(head.kind, 4),
                    }
                    rest = &rest[HEAD + head.length..];
                }
                assert!(rest.is_empty());
                assert_eq!(data, b"data");
                let fields = |pairs: &[(&str, &str)]| -> Vec<(Vec<u8>, Vec<u8>)> {
                    pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
                };
                let all =
                    fields(&[(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "localhost")]);
                assert_eq!(seen, [(false, all.clone()), (true, all)]);
            }
        }
    }

    #[tokio::test]
    async fn nonsense_goes_by_as_it_is() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let broken = frame(HEADERS, END_HEADERS | PADDED, &[200, 0xff, 0xff]);
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![],
            [preface.clone(), broken].concat(),
            [preface, vec![0xff; 40_000]].concat(),
        ] {
            assert_eq!(through(&bytes, 1000).await, bytes);
        }
    }

    #[test]
    fn long_texts_carry_their_length_in_more_bytes() {
        for length in [0, 126, 127, 128, 254, 255, 300, 20_000] {
            let mut block = vec![0];
            write_text(b"n", &mut block);
            write_text(&vec![b'v'; length], &mut block);
            assert_eq!(Decoder::new().decode(&block).unwrap(), [(b"n".to_vec(), vec![b'v'; length])]);
        }
    }
}
