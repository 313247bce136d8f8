//! The socket where shims deliver their events: ttrpc, one service, one method.
//!
//! Source: containerd's `containerd.services.events.ttrpc.v1.Events`.

use prost::Message as _;
use tare_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use tare_proto::ttrpc::server::{Incoming, Server, reply, unknown};
use tare_proto::ttrpc::{Code, Error};
use tare_proto::wire::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::Exchange;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// Answers every connection until the future is dropped.
pub async fn serve(listener: UnixListener, exchange: Exchange) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, exchange.clone()))),
            Err(error) => {
                tracing::error!("accepting a shim's connection: {error}");
                // Out of descriptors, most likely; the next attempt would fail at once and spin.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Requests are answered in the order they came: a shim's events must not overtake each other.
async fn connection(mut stream: UnixStream, exchange: Exchange) {
    let mut server = Server::default();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        server.push(&buffer[..length]);
        while let Some(incoming) = server.take() {
            let frame = match incoming {
                Incoming::Request { stream, request } => reply(stream, answer(&request, &exchange)),
                Incoming::Refused(frame) => frame,
            };
            if stream.write_all(&frame).await.is_err() {
                return; // the shim went away; it sends again what was not answered
            }
        }
    }
}

fn answer(request: &Request, exchange: &Exchange) -> Result<Vec<u8>, Error> {
    match (request.service.as_str(), request.method.as_str()) {
        (SERVICE, "Forward") => {}
        (SERVICE, method) => return Err(unknown("method", method)),
        (service, _) => return Err(unknown("service", service)),
    }
    let refused = |why: String| Error::new(Code::InvalidArgument, why);
    let request = ForwardRequest::decode(request.payload.as_slice())
        .map_err(|error| refused(format!("reading an event: {error}")))?;
    let event = request.envelope.ok_or_else(|| refused("an event without an envelope".into()))?;
    exchange.forward(event).map_err(|error| refused(error.to_string()))?;
    Ok(Vec::new()) // google.protobuf.Empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};
    use tare_proto::containerd::types::Envelope;
    use tare_proto::ttrpc::blocking::Client;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_shims_events_arrive_in_order_and_nonsense_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let exchange = Exchange::default();
        let mut subscription = exchange.subscribe(&[]).unwrap();
        let server = tokio::spawn(serve(UnixListener::bind(&path).unwrap(), exchange));
        tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(&path, Duration::from_secs(20)).unwrap();
            for topic in ["/a/b", "/c/d", "no"] {
                let envelope = Envelope {
                    timestamp: Some(SystemTime::now().into()),
                    namespace: "n".into(),
                    topic: topic.into(),
                    event: None,
                };
                let request = ForwardRequest { envelope: Some(envelope) }.encode_to_vec();
                let answer = client.call(SERVICE, "Forward", request, "n");
                assert_eq!(answer.is_ok(), topic != "no", "{topic}: {answer:?}");
            }
            let code = |answer: Result<Vec<u8>, Error>| answer.unwrap_err().code;
            assert_eq!(code(client.call(SERVICE, "Forward", vec![0xff], "n")), Code::InvalidArgument as i32);
            assert_eq!(code(client.call(SERVICE, "Forward", Vec::new(), "n")), Code::InvalidArgument as i32);
            assert_eq!(code(client.call(SERVICE, "Backward", Vec::new(), "n")), Code::Unimplemented as i32);
            assert_eq!(code(client.call("x", "Forward", Vec::new(), "n")), Code::Unimplemented as i32);
        })
        .await
        .unwrap();
        for topic in ["/a/b", "/c/d"] {
            assert_eq!(subscription.next().await.unwrap().topic, topic);
        }
        server.abort();
    }
}
