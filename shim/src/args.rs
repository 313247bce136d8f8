//! The command line, as containerd's daemons write it: flags in Go's manner, then a verb.
//!
//! Source: containerd `pkg/shim`; Go's `flag` package (`-name value`, `-name=value`, one dash or two).

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub namespace: String,
    pub id: String,
    /// The daemon's gRPC socket.
    pub address: String,
    pub publish_binary: PathBuf,
    pub bundle: PathBuf,
    pub debug: bool,
    pub info: bool,
    pub version: bool,
    pub verb: Verb,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Start,
    Delete,
    /// For the shim itself: write logs, as told on standard input.
    WriteLogs,
    /// None: serve the socket that is standard input.
    #[default]
    Serve,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Bad {
    #[error("an argument is not UTF-8")]
    NotText,
    #[error("unknown flag {0}")]
    Flag(String),
    #[error("flag {0} needs a value")]
    NoValue(String),
    #[error("unknown command {0}: start and delete are known")]
    Verb(String),
    #[error("-{0} must be given")]
    Missing(&'static str),
    #[error("-id {0:?}: an id is 1 to 200 letters, digits and _+-., and does not begin with a dot")]
    Id(String),
    #[error("-namespace {0:?}: a namespace is 1 to 200 letters, digits and _+-., and does not begin with a dot")]
    Namespace(String),
}

impl Args {
    /// # Errors
    /// What is not understood, or is missing for the verb.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, Bad> {
        let mut args = Args::default();
        let mut words = words.into_iter().map(|word| word.into_string().map_err(|_| Bad::NotText));
        while let Some(word) = words.next().transpose()? {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                args.verb = match word.as_str() {
                    "start" => Verb::Start,
                    "delete" => Verb::Delete,
                    "write-logs" => Verb::WriteLogs,
                    _ => return Err(Bad::Verb(word)),
                };
                continue;
            };
            let (name, given) =
                flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
            if let Some(switch) = args.switch(name) {
                *switch = given.is_none_or(|value| matches!(value.as_str(), "true" | "1" | "t"));
                continue;
            }
            let mut value = || given.clone().map_or_else(|| words.next().ok_or(Bad::NoValue(word.clone()))?, Ok);
            match name {
                "namespace" => args.namespace = value()?,
                "id" => args.id = value()?,
                "address" => args.address = value()?,
                "publish-binary" => args.publish_binary = value()?.into(),
                "bundle" => args.bundle = value()?.into(),
                // Ours is standard input, and there is no debug socket.
                "socket" | "debug-socket" => drop(value()?),
                _ => return Err(Bad::Flag(word)),
            }
        }
        if !args.info && !args.version {
            args.check()?;
        }
        Ok(args)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "info" => Some(&mut self.info),
            "v" | "version" => Some(&mut self.version),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), Bad> {
        if self.namespace.is_empty() {
            return Err(Bad::Missing("namespace"));
        }
        if self.id.is_empty() {
            return Err(Bad::Missing("id"));
        }
        if !is_name(&self.namespace) {
            return Err(Bad::Namespace(self.namespace.clone()));
        }
        if !is_name(&self.id) {
            return Err(Bad::Id(self.id.clone()));
        }
        Ok(())
    }
}

/// Whether a name from outside may become a file's name: it can neither leave its folder nor hide in it.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Args, Bad> {
        Args::parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_read_in_every_form_and_order() {
        let expected = parse("-namespace k8s.io -address /a -publish-binary /b -id one -debug start").unwrap();
        assert_eq!(expected.verb, Verb::Start);
        assert!(expected.debug);
        assert_eq!(
            parse("--id=one --debug=true --address=/a -publish-binary=/b --namespace k8s.io start").unwrap(),
            expected
        );
        assert_eq!(parse("-namespace a -id b -bundle /c delete").unwrap().bundle, PathBuf::from("/c"));
        assert_eq!(parse("-namespace a -id b").unwrap().verb, Verb::Serve);
        assert!(parse("-info").unwrap().info);
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(parse("-id a start"), Err(Bad::Missing("namespace")));
        assert_eq!(parse("-namespace a start"), Err(Bad::Missing("id")));
        assert_eq!(parse("-namespace a -id b restart"), Err(Bad::Verb("restart".into())));
        assert_eq!(parse("-colour a"), Err(Bad::Flag("-colour".into())));
        assert_eq!(parse("-id"), Err(Bad::NoValue("-id".into())));
    }

    #[test]
    fn no_name_leaves_its_folder() {
        for bad in ["", ".", "..", ".a", "a/b", "../a", "a\0b", "a b", "é", &"a".repeat(201)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["a", "default", "k8s.io", "0123abc", "a_b-c.d+e"] {
            assert!(is_name(good), "{good:?}");
        }
    }
}
