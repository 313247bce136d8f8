//! The command line, as Go's flag package reads it: one dash or two, the value beside or behind.

use crate::Error;

#[derive(Debug, Default)]
pub struct Flags {
    pub namespace: String,
    /// The daemon's gRPC address.
    pub address: String,
    pub publish_binary: String,
    pub id: String,
    pub bundle: String,
    pub socket: String,
    pub debug: bool,
    pub version: bool,
    pub info: bool,
    /// `start`, `delete`, or nothing: serve.
    pub action: String,
}

impl Flags {
    /// # Errors
    /// A flag that is not known, or one without its value.
    pub fn read(words: &[String]) -> Result<Flags, Error> {
        let mut flags = Flags::default();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-') else {
                flags.action.clone_from(word);
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, given) =
                name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value.to_owned())));
            let switch = match name {
                "debug" => Some(&mut flags.debug),
                "v" | "version" => Some(&mut flags.version),
                "info" => Some(&mut flags.info),
                _ => None,
            };
            if let Some(switch) = switch {
                *switch = given.is_none_or(|value| value == "true" || value == "1");
                continue;
            }
            let place = match name {
                "namespace" => &mut flags.namespace,
                "address" => &mut flags.address,
                "publish-binary" => &mut flags.publish_binary,
                "id" => &mut flags.id,
                "bundle" => &mut flags.bundle,
                "socket" => &mut flags.socket,
                "debug-socket" => &mut String::new(), // there is nothing to debug over a socket
                _ => return Err(Error::new(format!("flag provided but not defined: -{name}"))),
            };
            *place = match given {
                Some(value) => value,
                None => words.next().cloned().ok_or_else(|| Error::new(format!("flag needs an argument: -{name}")))?,
            };
        }
        if flags.namespace.is_empty() && !flags.version && !flags.info {
            return Err(Error::new("shim namespace cannot be empty"));
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_flags_does_not_matter() {
        for line in [
            "shim -namespace n -address /a -publish-binary /b -id x start",
            "shim -id=x --address=/a -publish-binary /b -namespace n -debug start",
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let flags = Flags::read(&words).unwrap();
            assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.action.as_str()), ("n", "x", "start"));
        }
    }
}
