//! Many subscribers, of which half never read: those who read get every event, and nobody waits for the others.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prost_types::Any;
use tare_proto::containerd::services::events::v1 as pb;
use tokio_stream::StreamExt as _;
use tonic::Request;

use super::client::connect;

pub const SUBSCRIBERS: usize = 200;
pub const EVENTS: usize = 2000;
const TOPIC: &str = "/bench/told";

/// How long it takes until all who read have all events.
pub async fn told(socket: &Path) -> Result<Duration> {
    let mut silent = Vec::new(); // dropped at the end: until then their connections are open
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..SUBSCRIBERS {
        let mut events = pb::events_client::EventsClient::new(connect(socket.to_owned()).await?);
        let filters = vec![format!("topic=={TOPIC:?}")];
        let mut stream = events.subscribe(pb::SubscribeRequest { filters }).await?.into_inner();
        if n % 2 == 0 {
            silent.push((events, stream));
            continue;
        }
        readers.spawn(async move {
            let mut seen = 0;
            while seen < EVENTS {
                match stream.next().await {
                    Some(Ok(_)) => seen += 1,
                    other => anyhow::bail!("after {seen} events: {other:?}"),
                }
            }
            drop(events);
            Ok(())
        });
    }
    let mut publisher = pb::events_client::EventsClient::new(connect(socket.to_owned()).await?);
    let begun = Instant::now();
    for n in 0..EVENTS {
        let event = Some(Any { type_url: "bench".into(), value: n.to_string().repeat(50).into_bytes() });
        let mut request = Request::new(pb::PublishRequest { topic: TOPIC.into(), event });
        request.metadata_mut().insert("containerd-namespace", "bench".parse()?);
        publisher.publish(request).await?;
    }
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    let took = begun.elapsed();
    ensure!(!silent.is_empty(), "somebody is silent");
    Ok(took)
}
