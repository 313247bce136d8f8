//! `tare`, from the shell: see the library.

#![no_main]

mod seal;
mod start;

#[global_allocator]
static MEMORY: tare_runtime::memory::Memory = tare_runtime::memory::Memory::new();

fn run() -> ! {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    std::process::exit(tare_runtime::cli::main(words));
}
