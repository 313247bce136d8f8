//! Compiles the pod's init, which the shim carries along and writes into the pods that it makes.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=init/main.rs");
    let variable = |name: &str| env::var_os(name).ok_or(format!("cargo does not set {name}"));
    let init = PathBuf::from(variable("OUT_DIR")?).join("init");
    // One segment of code and nothing else: no C library, no alignment to pages in the file, no notes.
    let link = "link-args=-nostdlib -static -no-pie -Wl,-n,--build-id=none,-z,norelro,-z,noexecstack,--no-eh-frame-hdr";
    let status = Command::new(variable("RUSTC")?)
        .args(["--edition=2024", "--crate-name=init", "--crate-type=bin", "init/main.rs", "--target"])
        .arg(variable("TARGET")?)
        .args(["-Cpanic=abort", "-Copt-level=s", "-Cstrip=symbols", "-Crelocation-model=static", "-C", link, "-o"])
        .arg(&init)
        .status()?;
    if !status.success() {
        return Err("the pod's init does not compile".into());
    }
    Ok(())
}
