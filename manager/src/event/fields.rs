//! What filters can ask of an event: `namespace`, `topic`, and `event.<field>` of the payloads that are known here.
//!
//! Source: containerd's `core/events/events.go` and the `fieldpath` of its `api/events`.

use std::collections::HashMap;

use prost::{Message, Name};
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::events as e;
use tare_proto::containerd::services::images::v1 as i;
use tare_proto::containerd::types::Envelope;

/// The field at `path`, or nothing if the event has no such field.
pub fn of(event: &Envelope, path: &[String]) -> Option<String> {
    match path {
        [field] if field == "namespace" => Some(event.namespace.clone()),
        [field] if field == "topic" => Some(event.topic.clone()),
        [first, rest @ ..] if first == "event" => {
            let payload = event.event.as_ref()?;
            let (field, rest) = rest.split_first()?;
            PAYLOADS.iter().find_map(|read| read(payload)).and_then(|fields| fields.get(field, rest))
        }
        _ => None,
    }
}

/// A payload as filters see it.
struct Fields {
    texts: Vec<(&'static str, String)>,
    labels: HashMap<String, String>,
}

impl Fields {
    fn new(texts: Vec<(&'static str, String)>) -> Fields {
        Fields { texts, labels: HashMap::new() }
    }

    fn get(mut self, field: &str, rest: &[String]) -> Option<String> {
        if field == "labels" {
            return self.labels.remove(&rest.join("."));
        }
        let (_, text) = self.texts.into_iter().find(|(name, _)| *name == field)?;
        rest.is_empty().then_some(text)
    }
}

type Reader = fn(&Any) -> Option<Fields>;

/// One reader for each payload; the one whose type it is answers.
const PAYLOADS: &[Reader] = &[
    |any| {
        read(any, |e: e::TaskCreate| {
            vec![("container_id", e.container_id), ("bundle", e.bundle), ("checkpoint", e.checkpoint)]
        })
    },
    |any| read(any, |e: e::TaskStart| vec![("container_id", e.container_id)]),
    |any| read(any, |e: e::TaskDelete| vec![("container_id", e.container_id), ("id", e.id)]),
    |any| read(any, |e: e::TaskExit| vec![("container_id", e.container_id), ("id", e.id)]),
    |any| read(any, |e: e::TaskOom| vec![("container_id", e.container_id)]),
    |any| read(any, |e: e::TaskExecAdded| vec![("container_id", e.container_id), ("exec_id", e.exec_id)]),
    |any| read(any, |e: e::TaskExecStarted| vec![("container_id", e.container_id), ("exec_id", e.exec_id)]),
    |any| read(any, |e: e::TaskPaused| vec![("container_id", e.container_id)]),
    |any| read(any, |e: e::TaskResumed| vec![("container_id", e.container_id)]),
    |any| read(any, |e: e::TaskCheckpointed| vec![("container_id", e.container_id), ("checkpoint", e.checkpoint)]),
    |any| read(any, |e: e::ContainerCreate| vec![("id", e.id), ("image", e.image)]),
    |any| {
        labelled(any, |e: e::ContainerUpdate| {
            (vec![("id", e.id), ("image", e.image), ("snapshot_key", e.snapshot_key)], e.labels)
        })
    },
    |any| read(any, |e: e::ContainerDelete| vec![("id", e.id)]),
    |any| read(any, |e: e::ContentCreate| vec![("digest", e.digest)]),
    |any| read(any, |e: e::ContentDelete| vec![("digest", e.digest)]),
    |any| labelled(any, |e: e::NamespaceCreate| (vec![("name", e.name)], e.labels)),
    |any| labelled(any, |e: e::NamespaceUpdate| (vec![("name", e.name)], e.labels)),
    |any| read(any, |e: e::NamespaceDelete| vec![("name", e.name)]),
    |any| read(any, |e: e::SnapshotPrepare| vec![("key", e.key), ("parent", e.parent), ("snapshotter", e.snapshotter)]),
    |any| read(any, |e: e::SnapshotCommit| vec![("key", e.key), ("name", e.name), ("snapshotter", e.snapshotter)]),
    |any| read(any, |e: e::SnapshotRemove| vec![("key", e.key), ("snapshotter", e.snapshotter)]),
    |any| labelled(any, |e: i::ImageCreate| (vec![("name", e.name)], e.labels)),
    |any| labelled(any, |e: i::ImageUpdate| (vec![("name", e.name)], e.labels)),
    |any| read(any, |e: i::ImageDelete| vec![("name", e.name)]),
];

fn read<E: Message + Default + Name>(any: &Any, texts: impl Fn(E) -> Vec<(&'static str, String)>) -> Option<Fields> {
    Some(Fields::new(texts(payload(any)?)))
}

fn labelled<E: Message + Default + Name>(
    any: &Any,
    parts: impl Fn(E) -> (Vec<(&'static str, String)>, HashMap<String, String>),
) -> Option<Fields> {
    let (texts, labels) = parts(payload(any)?);
    Some(Fields { texts, labels })
}

/// Bytes that are not the message they claim to be have no fields.
fn payload<E: Message + Default + Name>(any: &Any) -> Option<E> {
    any::unpack(any, &E::full_name()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(event: &Envelope, path: &str) -> Option<String> {
        of(event, &path.split('.').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn payload_fields_are_found_by_name_and_labels_by_the_whole_rest_of_the_path() {
        let labels = HashMap::from([("io.a.b".to_owned(), "v".to_owned())]);
        let payload = e::ContainerUpdate { id: "c".into(), labels, ..Default::default() };
        let event = Envelope {
            timestamp: None,
            namespace: "n".into(),
            topic: "/containers/update".into(),
            event: Some(any::pack("containerd.events.ContainerUpdate", &payload)),
        };
        for (path, value) in [
            ("namespace", Some("n")),
            ("topic", Some("/containers/update")),
            ("event.id", Some("c")),
            ("event.labels.io.a.b", Some("v")),
            ("event.labels.io", None),
            ("event.id.more", None),
            ("event.nothing", None),
            ("event", None),
            ("other", None),
        ] {
            assert_eq!(field(&event, path).as_deref(), value, "{path}");
        }
        let garbage = Any { type_url: "containerd.events.TaskExit".into(), value: vec![0xff] };
        assert_eq!(field(&Envelope { event: Some(garbage), ..event }, "event.id"), None);
    }
}
