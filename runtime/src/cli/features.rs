//! `tare features`: what this runtime supports, from the same tables that it works by.
//!
//! Source: runtime-spec features.md.

use serde_json::json;

use super::flags::{Order, parse};
use super::{Error, Global, Name};
use crate::mount::options::WORDS;
use crate::{capability, plan, seccomp};

/// The newest specification that is known.
const SPEC: &str = "1.3.0";

pub fn main(_: &Global, words: &[String]) -> Result<i32, Error> {
    parse(words, &[], Order::Anywhere)?;
    let options: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": options,
        "linux": {
            "namespaces": plan::namespace_kinds().collect::<Vec<_>>(),
            "capabilities": capability::NAMES,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::actions().collect::<Vec<_>>(),
                "operators": seccomp::operators().collect::<Vec<_>>(),
                "archs": seccomp::architectures().collect::<Vec<_>>(),
                "knownFlags": seccomp::flags().collect::<Vec<_>>(),
                "supportedFlags": seccomp::flags().collect::<Vec<_>>(),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
            "memoryPolicy": {
                "modes": plan::scheduling::memory_modes().collect::<Vec<_>>(),
                "flags": plan::scheduling::memory_flags().collect::<Vec<_>>(),
            },
        },
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
        "annotations": {
            "dev.tare.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "true", // what tools around runc look for
        },
    });
    println!("{}", serde_json::to_string_pretty(&features).expect("only strings are keys"));
    Ok(0)
}

/// What `--version` prints. Called as runc, the first line is the one that runc's callers look for.
pub fn version(name: Name) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match name {
        Name::Tare => format!("tare version {version}\nspec: {SPEC}\n"),
        Name::Runc => format!("runc version 1.3.0+tare.{version}\nspec: {SPEC}\n"),
    }
}
