//! `-info`: what this shim and its runtime are.

use std::io::{Read as _, Write as _};

use prost::Message as _;
use prost_types::Any;
use tare_proto::containerd::types::{RuntimeInfo, RuntimeVersion};

use crate::runtime::Runtime;
use crate::{Doing as _, Error, options};

const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

pub fn print() -> Result<(), Error> {
    let mut input = Vec::new();
    std::io::stdin().take(1 << 20).read_to_end(&mut input).doing(|| "reading standard input".into())?;
    let given =
        Any::decode(input.as_slice()).map_err(|error| Error::new(format!("reading runtime options: {error}")))?;
    let options = options::read(Some(&given))?;
    let runtime = Runtime::new(&options, "");
    let features = std::process::Command::new(runtime.binary()).arg("features").output();
    let features = features.ok().filter(|out| out.status.success()); // older runtimes have no such command
    let info = RuntimeInfo {
        name: "io.containerd.tare.v2".into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: String::new() }),
        options: (!given.type_url.is_empty()).then_some(given),
        features: features.map(|out| Any { type_url: FEATURES.into(), value: out.stdout }),
        annotations: std::collections::HashMap::new(),
    };
    std::io::stdout().write_all(&info.encode_to_vec()).doing(|| "answering".into())
}
