fn main() {
    // `tare` starts in src/seal.rs, before the C library does.
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=tare_start");
}
