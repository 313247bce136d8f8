//! No message and no reader, however bad, ends the daemon or keeps others from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use tare_proto::containerd::services::content::v1 as content;
use tare_proto::containerd::services::events::v1 as events;
use tare_proto::containerd::services::version::v1::version_client::VersionClient;
use tare_proto::grpc::health::v1::HealthCheckRequest;
use tare_proto::grpc::health::v1::health_client::HealthClient;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::tared::{Tared, channel, within};

/// A method of a gRPC service.
struct Method {
    path: String,
    asks_in_a_stream: bool,
}

/// Those of every service that our .proto files define for the daemon.
fn methods() -> Vec<Method> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let mut methods = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        let served = ["containerd.services.", "grpc.", "runtime.v1"].iter().any(|begin| name.starts_with(begin));
        if !served || name.contains("ttrpc") {
            continue;
        }
        let package = name.strip_suffix(".proto").unwrap();
        let mut service = String::new();
        for line in std::fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            if let Some(rest) = line.strip_prefix("service ") {
                rest.split_whitespace().next().unwrap().clone_into(&mut service);
            } else if let Some(rest) = line.trim().strip_prefix("rpc ") {
                let (method, rest) = rest.split_once('(').unwrap();
                methods.push(Method {
                    path: format!("/{package}.{service}/{method}"),
                    asks_in_a_stream: rest.starts_with("stream"),
                });
            }
        }
    }
    methods
}

/// Messages as bytes, whatever they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// Sends the messages and reads one answer. What waits for news may wait on, but not for us.
async fn call(channel: &Channel, method: &Method, named: bool, messages: Vec<Vec<u8>>) -> Result<(), Status> {
    const PATIENCE: Duration = Duration::from_millis(100);
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let to = PathAndQuery::try_from(method.path.as_str()).unwrap();
    let request = tokio_stream::iter(messages);
    let request = if named { within("test", request) } else { Request::new(request) };
    let answered = async {
        let mut answers = client.streaming(request, to, Raw).await?.into_inner();
        answers.message().await.map(drop)
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap_or(Ok(()))
}

#[tokio::test]
async fn every_method_answers_an_empty_message_and_the_daemon_goes_on() {
    let tared = Tared::start().await;
    let (methods, channel) = (methods(), tared.channel().await);
    assert!(methods.len() > 110, "{}", methods.len());
    for method in &methods {
        for named in [false, true] {
            if let Err(status) = call(&channel, method, named, vec![Vec::new()]).await {
                let path = &method.path;
                let good = !matches!(status.code(), Code::Internal | Code::Unknown | Code::Unavailable);
                assert!(good, "{path} with namespace: {named}: {status:?}\n{}", tared.log());
                assert_ne!(status.message(), "", "{path}");
            }
        }
    }
    goes_on(&tared).await;
}

#[tokio::test]
async fn no_bytes_at_all_end_the_daemon_and_nonsense_is_called_nonsense() {
    let tared = Tared::start().await;
    let channel = tared.channel().await;
    let mut random = Random(0x5eed);
    let mut codes = BTreeMap::new();
    for method in methods() {
        for round in 0..6 {
            let messages = if method.asks_in_a_stream { 1 + random.below(3) } else { 1 };
            let messages = (0..messages).map(|_| random.message(round % 3 == 0, 0)).collect();
            let code = call(&channel, &method, true, messages).await.map_or_else(|status| status.code(), |()| Code::Ok);
            *codes.entry(code as i32).or_insert(0) += 1;
        }
    }
    goes_on(&tared).await;
    assert!(codes[&(Code::InvalidArgument as i32)] > 50, "{codes:?}");
}

async fn goes_on(tared: &Tared) {
    HealthClient::new(tared.channel().await).check(HealthCheckRequest::default()).await.unwrap();
    assert!(!tared.log().contains("panicked"), "{}", tared.log());
}

/// The same numbers on every machine and run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// Bytes, or fields that may be a message's: numbers and texts that mean something somewhere, and messages in messages.
    fn message(&mut self, noise: bool, depth: usize) -> Vec<u8> {
        const TEXTS: &[&str] = &[
            "",
            "a",
            "test",
            "default",
            "../../x",
            "a/b",
            "overlayfs",
            "native",
            "shim",
            "io.containerd.tare.v2",
            "labels.",
            "id==a",
            "==",
            "labels.\"",
            "x\0y",
            "é",
            "sha256:",
            "0001-01-01T00:00:00Z",
            "-1",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "containerd.types.transfer.ImageStore",
        ];
        let mut bytes = Vec::new();
        if noise {
            return (0..self.below(60)).map(|_| self.next().to_le_bytes()[0]).collect();
        }
        for _ in 0..self.below(6) {
            let field = 1 + self.next() % 11;
            match self.below(4) {
                0 => {
                    varint(&mut bytes, field << 3);
                    let number = [0, 1, 2, 7, u64::MAX, 1 << 31, 1 << 63][self.below(7)];
                    varint(&mut bytes, number);
                }
                1 if depth < 4 => {
                    let inner = self.message(false, depth + 1);
                    varint(&mut bytes, field << 3 | 2);
                    varint(&mut bytes, inner.len() as u64);
                    bytes.extend(inner);
                }
                2 => {
                    varint(&mut bytes, field << 3 | 2);
                    let text = "x".repeat(self.below(3) * 5000);
                    varint(&mut bytes, text.len() as u64);
                    bytes.extend(text.bytes());
                }
                _ => {
                    let text = TEXTS[self.below(TEXTS.len())];
                    varint(&mut bytes, field << 3 | 2);
                    varint(&mut bytes, text.len() as u64);
                    bytes.extend(text.bytes());
                }
            }
        }
        bytes
    }
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Of two hundred that subscribe half never read: the others miss nothing, and nobody waits.
#[tokio::test]
async fn subscribers_that_do_not_read_keep_nobody_and_nothing() {
    const EACH: usize = 100;
    const EVENTS: usize = 150;
    let tared = Tared::start().await;
    let (readers, sleepers) = (tared.channel().await, tared.channel().await);
    let subscribe = async |channel: &Channel| {
        let request = events::SubscribeRequest { filters: vec!["topic==\"/test/event\"".into()] };
        events::events_client::EventsClient::new(channel.clone()).subscribe(request).await.unwrap().into_inner()
    };
    let (mut reading, mut sleeping) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        reading.push(subscribe(&readers).await);
        sleeping.push(subscribe(&sleepers).await);
    }
    let publisher = tared.channel().await;
    let publishing = tokio::spawn(async move {
        let event = prost_types::Any { type_url: "test.Event".into(), value: vec![0; 1000] };
        let mut client = events::events_client::EventsClient::new(publisher);
        for _ in 0..EVENTS {
            let request = events::PublishRequest { topic: "/test/event".into(), event: Some(event.clone()) };
            client.publish(within("test", request)).await.unwrap();
        }
    });
    let read = reading.into_iter().map(|mut told| {
        tokio::spawn(async move {
            for _ in 0..EVENTS {
                told.message().await.unwrap().unwrap();
            }
        })
    });
    for reader in read.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    publishing.await.unwrap();
    let resident = resident(tared.server.id());
    assert!(resident < 100 << 20, "{} MiB are resident", resident >> 20);
    drop(sleeping);
    goes_on(&tared).await;
}

/// Bytes of a process that are in memory. Source: proc_pid_statm(5).
fn resident(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A client writes and writes and reads no answer: it holds up itself, and its reference is free when it has gone.
#[tokio::test]
async fn a_writer_that_reads_no_answer_holds_up_itself_alone() {
    let tared = Tared::start().await;
    let write = |offset: i64| content::WriteContentRequest {
        action: content::WriteAction::Write.into(),
        r#ref: "r".into(),
        offset,
        data: vec![7; 8 << 10],
        ..Default::default()
    };
    // A runtime of its own, so that all of it ends as a process would.
    let writer = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (began, begun) = tokio::sync::oneshot::channel();
    let (socket, messages) = (tared.socket(), tokio_stream::iter((0..).map(move |n| write(n * (8 << 10)))));
    writer.spawn(async move {
        let mut client = content::content_client::ContentClient::new(channel(socket).await);
        let unread = client.write(within("test", messages)).await.unwrap();
        began.send(()).unwrap();
        std::future::pending::<()>().await;
        drop(unread);
    });
    begun.await.unwrap();
    let other = tared.channel().await;
    for _ in 0..50 {
        VersionClient::new(other.clone()).version(()).await.unwrap();
    }
    let mut client = content::content_client::ContentClient::new(other);
    let mut begin = async || {
        let answers = client.write(within("test", tokio_stream::iter([write(0)]))).await?;
        answers.into_inner().message().await.map(drop)
    };
    assert_eq!(begin().await.unwrap_err().code(), Code::Unavailable, "the reference is locked");
    writer.shutdown_background();
    let limit = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(status) = begin().await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(std::time::Instant::now() < limit, "the reference stayed locked");
    }
    goes_on(&tared).await;
}
