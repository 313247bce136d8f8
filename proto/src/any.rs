//! `Any` as containerd writes it: the type's bare full name, without a prefix.

use prost::Message;
use prost_types::Any;

/// Packs a message under its full name, `containerd.events.TaskExit`.
pub fn pack(name: &str, message: &impl Message) -> Any {
    Any { type_url: name.to_owned(), value: message.encode_to_vec() }
}

/// The type's name, with or without a prefix.
pub fn name(any: &Any) -> &str {
    any.type_url.strip_prefix("type.googleapis.com/").unwrap_or(&any.type_url)
}

/// Unpacks a message if it has that name.
///
/// # Errors
/// The bytes are not such a message.
pub fn unpack<M: Message + Default>(any: &Any, expected: &str) -> Result<Option<M>, prost::DecodeError> {
    if name(any) == expected { M::decode(any.value.as_slice()).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::TaskStart;

    #[test]
    fn a_prefix_is_accepted_and_never_written() {
        let event = TaskStart { container_id: "a".into(), pid: 7 };
        let mut any = pack("containerd.events.TaskStart", &event);
        assert_eq!(any.type_url, "containerd.events.TaskStart");
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<TaskStart>(&any, "containerd.events.TaskStart").unwrap().unwrap().pid, 7);
        assert!(unpack::<TaskStart>(&any, "containerd.events.TaskExit").unwrap().is_none());
    }
}
