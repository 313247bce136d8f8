//! `tare`, from the shell: see the library.

mod seal;

fn main() {}
