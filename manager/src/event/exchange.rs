//! From every publisher to every subscriber whose filter fits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prost::Name;
use tare_proto::any;
use tare_proto::containerd::types::Envelope;
use tokio::sync::mpsc;

use super::fields;
use crate::error::Error;
use crate::filter::Filter;
use crate::names::{Id, Namespace};

/// How many events may wait for one reader. A reader that falls further behind loses its subscription, so that it
/// knows that it missed something, and cannot fill our memory.
const BACKLOG: usize = 8192;

/// Clones share the subscribers.
#[derive(Clone, Default)]
pub struct Exchange {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
}

struct Subscriber {
    filter: Filter,
    sender: mpsc::Sender<Arc<Envelope>>,
}

/// The reading end. Dropping it ends the subscription.
pub struct Subscription {
    receiver: mpsc::Receiver<Arc<Envelope>>,
}

impl Exchange {
    /// Takes an event of our own: it happened now.
    ///
    /// # Errors
    /// The topic is not one.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: prost_types::Any) -> Result<(), Error> {
        self.forward(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(event),
        })
    }

    /// Takes one of containerd's events under its registered name.
    ///
    /// # Errors
    /// The topic is not one.
    pub fn tell<E: prost::Message + Name>(&self, namespace: &Namespace, topic: &str, event: &E) -> Result<(), Error> {
        self.publish(namespace, topic, any::pack(&E::full_name(), event))
    }

    /// Takes an event as somebody else stamped it.
    ///
    /// # Errors
    /// It has no timestamp, or its namespace or topic are not such names.
    pub fn forward(&self, event: Envelope) -> Result<(), Error> {
        check(&event)?;
        let event = Arc::new(event);
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| match subscriber.filter.matches(|path| fields::of(&event, path)) {
            // Full or closed: dropping the sender ends the subscription.
            true => subscriber.sender.try_send(event.clone()).is_ok(),
            false => !subscriber.sender.is_closed(),
        });
        Ok(())
    }

    /// Everything that is published from now on and passes one of the filters; all of it if there is none.
    ///
    /// # Errors
    /// A filter cannot be read.
    pub fn subscribe(&self, filters: &[String]) -> Result<Subscription, Error> {
        let filter = Filter::parse(filters)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(Subscriber { filter, sender });
        Ok(Subscription { receiver })
    }
}

impl Subscription {
    /// The next event.
    ///
    /// # Errors
    /// The reader fell too far behind and missed events.
    pub async fn next(&mut self) -> Result<Arc<Envelope>, Error> {
        let behind = || Error::ResourceExhausted(format!("reading events: more than {BACKLOG} are waiting to be read"));
        self.receiver.recv().await.ok_or_else(behind)
    }
}

fn check(event: &Envelope) -> Result<(), Error> {
    let refused = |what: String| Error::InvalidArgument(format!("publishing an event: {what}"));
    Namespace::parse(&event.namespace)?;
    let Some(topic) = event.topic.strip_prefix('/') else {
        return Err(refused(format!("topic {:?} does not begin with /", event.topic)));
    };
    for part in topic.split('/') {
        Id::parse(part).map_err(|error| refused(format!("topic {:?}: {error}", event.topic)))?;
    }
    if event.timestamp.is_none() {
        return Err(refused("it has no timestamp".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tare_proto::containerd::events::{TaskExit, TaskStart};

    fn start(exchange: &Exchange, namespace: &str, id: &str) {
        let event = TaskStart { container_id: id.into(), pid: 7 };
        let any = any::pack("containerd.events.TaskStart", &event);
        exchange.publish(&Namespace::parse(namespace).unwrap(), "/tasks/start", any).unwrap();
    }

    #[tokio::test]
    async fn a_subscriber_sees_what_its_filter_lets_through_from_all_namespaces() {
        let exchange = Exchange::default();
        let mut all = exchange.subscribe(&[]).unwrap();
        let mut one =
            exchange.subscribe(&[r#"namespace==b,topic=="/tasks/start",event.container_id==y"#.into()]).unwrap();
        for (namespace, id) in [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")] {
            start(&exchange, namespace, id);
        }
        for namespace in ["a", "b", "a", "b"] {
            assert_eq!(all.next().await.unwrap().namespace, namespace);
        }
        let seen = one.next().await.unwrap();
        let payload: TaskStart =
            any::unpack(seen.event.as_ref().unwrap(), "containerd.events.TaskStart").unwrap().unwrap();
        assert_eq!((seen.namespace.as_str(), payload.container_id.as_str()), ("b", "y"));
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_and_stops_nobody() {
        let exchange = Exchange::default();
        let mut slow = exchange.subscribe(&[]).unwrap();
        for _ in 0..=BACKLOG {
            start(&exchange, "a", "x");
        }
        let mut fresh = exchange.subscribe(&[]).unwrap();
        start(&exchange, "a", "last");
        assert_eq!(fresh.next().await.unwrap().topic, "/tasks/start");
        for _ in 0..BACKLOG {
            slow.next().await.unwrap();
        }
        assert!(matches!(slow.next().await, Err(Error::ResourceExhausted(_))));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let exchange = Exchange::default();
        let good = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: "a".into(),
            topic: "/tasks/exit".into(),
            event: Some(any::pack("containerd.events.TaskExit", &TaskExit::default())),
        };
        exchange.forward(good.clone()).unwrap();
        for bad in [
            Envelope { timestamp: None, ..good.clone() },
            Envelope { namespace: String::new(), ..good.clone() },
            Envelope { namespace: "../a".into(), ..good.clone() },
            Envelope { topic: "tasks/exit".into(), ..good.clone() },
            Envelope { topic: "/".into(), ..good.clone() },
            Envelope { topic: "/tasks//exit".into(), ..good },
        ] {
            assert!(matches!(exchange.forward(bad.clone()), Err(Error::InvalidArgument(_))), "{bad:?}");
        }
    }
}
