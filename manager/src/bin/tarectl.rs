//! `tarectl`, from the shell: see `ctl`.

fn main() {
    std::process::exit(tare_manager::ctl::main());
}
