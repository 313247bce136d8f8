//! `tarectl`, from the shell: see `ctl`.

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(tare_manager::ctl::main()));
    std::process::exit(ended.unwrap_or_else(|error| {
        eprintln!("tarectl: {error:#}");
        1
    }));
}
