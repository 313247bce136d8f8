//! The serving half of a connection, apart from any socket: bytes in, requests and refusals out.

use prost::Message as _;

use super::frame::{self, Decoder, LONGEST, TooLong};
use super::{Code, Error, response};
use crate::wire::Request;

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    Request {
        stream: u32,
        request: Request,
    },
    /// The frame to send back, for what is no request. The connection goes on.
    Refused(Vec<u8>),
}

/// One connection's requests. Clients number theirs with odd numbers that rise.
#[derive(Debug, Default)]
pub struct Server {
    decoder: Decoder,
    last: u32,
}

impl Server {
    /// Takes in what was read from the client.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next request, or refusal, that is whole.
    pub fn take(&mut self) -> Option<Incoming> {
        loop {
            let frame = match self.decoder.take()? {
                Ok(frame) => frame,
                Err(TooLong { stream, length }) => {
                    let text = format!("a message of {length} bytes is longer than {LONGEST}");
                    return Some(refused(stream, Code::ResourceExhausted, text));
                }
            };
            // Other kinds are for streams, which no service of ours has, or for later versions.
            if frame.kind != frame::REQUEST {
                continue;
            }
            let stream = frame.stream;
            if stream % 2 == 0 || stream <= self.last {
                let text = format!("stream {stream} after {}: numbers are odd and rise", self.last);
                return Some(refused(stream, Code::InvalidArgument, text));
            }
            self.last = stream;
            return Some(match Request::decode(frame.data.as_slice()) {
                Ok(request) => Incoming::Request { stream, request },
                Err(error) => refused(stream, Code::InvalidArgument, format!("reading a request: {error}")),
            });
        }
    }
}

fn refused(stream: u32, code: Code, message: String) -> Incoming {
    Incoming::Refused(reply(stream, Err(Error::new(code, message))))
}

/// The frame that answers the request of `stream`.
pub fn reply(stream: u32, answer: Result<Vec<u8>, Error>) -> Vec<u8> {
    let mut data = response(answer);
    if data.len() > LONGEST {
        let text = format!("an answer of {} bytes is longer than {LONGEST}", data.len());
        data = response(Err(Error::new(Code::ResourceExhausted, text)));
    }
    frame::encode(stream, frame::RESPONSE, &data)
}

/// A service or method that is not there, in the words of other ttrpc servers.
pub fn unknown(what: &str, name: &str) -> Error {
    Error::new(Code::Unimplemented, format!("{what} {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::{answer, request};
    use super::*;

    fn sent(stream: u32) -> Vec<u8> {
        frame::encode(stream, frame::REQUEST, &request("a.Service", "Method", vec![1, 2], "ns"))
    }

    fn refusal(incoming: Option<Incoming>) -> Error {
        let Some(Incoming::Refused(bytes)) = incoming else { panic!("{incoming:?}") };
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        answer(&decoder.take().unwrap().unwrap().data).unwrap_err()
    }

    #[test]
    fn requests_come_in_order_with_their_metadata() {
        let mut server = Server::default();
        server.push(&[sent(1), sent(3)].concat());
        for expected in [1, 3] {
            let Some(Incoming::Request { stream, request }) = server.take() else { panic!() };
            assert_eq!(
                (stream, request.service.as_str(), request.payload.as_slice()),
                (expected, "a.Service", &[1, 2][..])
            );
            assert_eq!(request.metadata[0].key, "containerd-namespace-ttrpc");
        }
        assert!(server.take().is_none());
    }

    #[test]
    fn even_and_falling_numbers_are_refused_and_the_connection_goes_on() {
        let mut server = Server::default();
        server.push(&[sent(5), sent(2), sent(5), sent(7)].concat());
        assert!(matches!(server.take(), Some(Incoming::Request { stream: 5, .. })));
        assert_eq!(refusal(server.take()).code, Code::InvalidArgument as i32);
        assert_eq!(refusal(server.take()).code, Code::InvalidArgument as i32);
        assert!(matches!(server.take(), Some(Incoming::Request { stream: 7, .. })));
    }

    #[test]
    fn what_is_no_request_is_answered_and_what_is_unknown_passed_over() {
        let mut server = Server::default();
        server.push(&frame::encode(1, frame::REQUEST, &[0xff]));
        server.push(&frame::encode(9, 77, b"later"));
        let length = u32::try_from(LONGEST + 1).unwrap();
        server.push(&[&length.to_be_bytes()[..], &[0, 0, 0, 11, frame::REQUEST, 0]].concat());
        assert_eq!(refusal(server.take()).code, Code::InvalidArgument as i32);
        assert_eq!(refusal(server.take()).code, Code::ResourceExhausted as i32);
        assert!(server.take().is_none());
    }

    #[test]
    fn an_answer_that_is_too_long_becomes_an_error() {
        let bytes = reply(1, Ok(vec![0; LONGEST + 1]));
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(answer(&decoder.take().unwrap().unwrap().data).unwrap_err().code, Code::ResourceExhausted as i32);
    }
}
