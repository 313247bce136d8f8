//! `-info`: what this shim and its runtime are; `-version`.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::Path;

use prost::Message as _;
use prost_types::Any;
use tare_proto::containerd::types::{RuntimeInfo, RuntimeVersion};

use crate::Error;
use crate::error::Doing as _;
use crate::options::Options;
use crate::runtime::Runtime;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// # Errors
/// Standard input holds no options, or standard output is closed.
pub fn print() -> Result<(), Error> {
    let mut input = Vec::new();
    std::io::stdin().take(10 << 20).read_to_end(&mut input).doing(|| "reading standard input".into())?;
    let any = Any::decode(input.as_slice())?;
    let options = Options::from_any(&any)?;
    let folder = std::env::temp_dir();
    let runtime = Runtime::new(&options, "", Path::new(&folder), false);
    // A runtime that has no such command, or is not there, is known by its name only.
    let features = runtime.run_alone(&["features"]).ok();
    let info = RuntimeInfo {
        name: "io.containerd.tare.v2".into(),
        version: Some(RuntimeVersion { version: VERSION.into(), revision: String::new() }),
        options: (!any.type_url.is_empty()).then_some(any),
        features: features.map(|value| Any { type_url: FEATURES.into(), value }),
        annotations: HashMap::new(),
    };
    Ok(std::io::stdout().write_all(&info.encode_to_vec()).doing(|| "answering".into())?)
}

/// # Errors
/// Standard output is closed.
pub fn version() -> Result<(), Error> {
    Ok(writeln!(std::io::stdout(), "containerd-shim-tare-v2:\n  Version:  {VERSION}").doing(|| "answering".into())?)
}
