//! The name of a system call in a profile, looked up while the profile is read: a profile has hundreds, and a text of its
//! own for each would cost more than all that is done with them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::abi::Row;

/// A system call that we know, or what else was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(Result<Row, Box<str>>);

impl Name {
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Ok(row) => row.name(),
            Err(unknown) => unknown,
        }
    }

    pub(super) fn row(&self) -> Option<Row> {
        self.0.as_ref().ok().copied()
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Name {
        Name(Row::find(name).ok_or_else(|| name.into()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Name;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("the name of a system call")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(name.into())
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_whether_it_is_known_or_not() {
        for (text, known) in [("openat2", true), ("no_such_call", false), ("", false)] {
            let json = serde_json::to_string(text).unwrap();
            let name: Name = serde_json::from_str(&json).unwrap();
            assert_eq!((name.as_str(), name.row().is_some()), (text, known));
            assert_eq!(serde_json::to_string(&name).unwrap(), json);
        }
        assert!(serde_json::from_str::<Name>("7").is_err());
    }
}
