//! The daemon: builds the parts, wires them, serves until it is told to end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tare_manager::config::{Config, Format, Level, Overrides};
use tare_manager::daemon;
use tare_manager::error::Result;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Images, snapshots and containers behind containerd's API.
#[derive(Parser)]
#[command(name = "tared", version = tare_manager::VERSION)]
struct Args {
    /// Configuration file (/etc/tared/config.toml if there is one)
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for images, snapshots and the database
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder for what a reboot may lose
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Socket for gRPC
    #[arg(short, long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// How much is logged
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<Level>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Show the configuration
    Config {
        #[command(subcommand)]
        which: Which,
    },
    /// Publish an event that is read from standard input (for shims)
    #[command(hide = true)]
    Publish {
        #[arg(long)]
        topic: String,
        #[arg(long)]
        namespace: String,
    },
}

#[derive(Subcommand)]
enum Which {
    /// The built-in values
    Default,
    /// The values in effect
    Dump,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tared: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let Args { config, root, state, address, log_level: level, command } = args;
    let config = || Config::load(config.as_deref(), Overrides { root, state, address, level }).map(Config::complete);
    match command {
        Some(Command::Config { which: Which::Default }) => print!("{}", Config::default().complete().dump()?),
        Some(Command::Config { which: Which::Dump }) => print!("{}", config()?.dump()?),
        Some(Command::Publish { topic, namespace }) => daemon::publish(&config()?.grpc.address, &topic, &namespace)?,
        None => {
            let config = config()?;
            log(&config);
            daemon::run(&config)?;
        }
    }
    Ok(())
}

/// Libraries speak up only when something is wrong.
fn log(config: &Config) {
    let level = match config.debug.level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    let ours = Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets([
        ("tare_manager", level),
        ("tared", level),
        ("shim", level),
    ]);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match config.debug.format {
        Format::Text => registry.with(format.with_ansi(false).with_filter(ours)).init(),
        Format::Json => registry.with(format.json().with_filter(ours)).init(),
    }
}
