//! What can be fuzzed. A target takes any bytes and panics where a promise is broken.

mod config;
mod layer;
mod manifest;
mod mount_options;
mod seccomp;
mod spdy;
mod ttrpc;
mod websocket;

/// One reader of outside text.
pub struct Target {
    /// Also the name of its folder in the corpus.
    pub name: &'static str,
    pub about: &'static str,
    pub try_input: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "config", about: "config.json, up to the plan of a container", try_input: config::try_input },
    Target { name: "layer", about: "a layer's archive, unpacked", try_input: layer::try_input },
    Target { name: "manifest", about: "an image's manifest, index or configuration", try_input: manifest::try_input },
    Target { name: "mount-options", about: "the options of a mount", try_input: mount_options::try_input },
    Target { name: "seccomp", about: "a seccomp profile, up to the program", try_input: seccomp::try_input },
    Target { name: "spdy", about: "what a streaming client sends over SPDY", try_input: spdy::try_input },
    Target { name: "ttrpc", about: "what a client sends to a shim", try_input: ttrpc::try_input },
    Target { name: "websocket", about: "what one sends over WebSocket", try_input: websocket::try_input },
];

/// An error must say something, and not repeat at length what it was given.
fn assert_sentence(error: &str) {
    assert!(!error.is_empty(), "an error without words");
    assert!(error.len() < 64 << 10, "an error of {} bytes", error.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_every_corpus_is_answered() {
        for target in TARGETS {
            for input in crate::worker::corpus(target.name).unwrap() {
                (target.try_input)(&input);
            }
        }
    }
}
