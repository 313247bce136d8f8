//! Generates the messages, and with feature `grpc` the services, from proto/. Parsed by protox: no protoc is needed.

use std::env;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<PathBuf> =
        std::fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut messages = prost_build::Config::new();
    messages.enable_type_names();
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        tonic_prost_build::configure().include_file("all.rs").compile_fds_with_config(descriptors, messages)?;
    } else {
        messages.include_file("all.rs").compile_fds(descriptors)?;
    }
    Ok(())
}
