//! How `tare` is linked.

fn main() {
    // It starts in src/seal.rs, before the C library does, and so before anything could apply relocations: at a fixed
    // address there are none.
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=tare_start");
    println!("cargo:rustc-link-arg-bins=-static");
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
