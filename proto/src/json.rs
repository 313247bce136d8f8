//! How messages that are shown as JSON are written.

use serde::Serializer;

/// What was not set is left out.
pub fn is_unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes that are text to all who use them.
///
/// # Errors
/// The serializer's.
pub fn text<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}
