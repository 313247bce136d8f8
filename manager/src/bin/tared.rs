//! The daemon: builds the parts, wires them, serves until it is told to end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tare_manager::config::{Config, Format, Level, Loaded, Overrides};
use tare_manager::daemon;
use tare_manager::debug::SetLevel;
use tare_manager::error::{Error, Result};
use tare_manager::memory;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Images, snapshots and containers behind containerd's API.
#[derive(Parser)]
#[command(name = "tared", version = tare_manager::VERSION)]
struct Args {
    /// Configuration file (/etc/tared/config.toml if there is one)
    #[arg(short, long, value_name = "FILE", global = true)]
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
    /// Check what is on disk against what should be, while no daemon runs
    Fsck {
        /// Take away what is damaged: a pull then brings it again
        #[arg(long)]
        repair: bool,
    },
    /// Run a program as an OCI hook, with {{id}}, {{pid}} and the like in its arguments replaced
    OciHook {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
        words: Vec<String>,
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
    /// The file, with what it imports, in this version's form
    Migrate,
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
    let load = |overrides| Config::load(config.as_deref(), overrides);
    let told = || load(Overrides { root: root.clone(), state: state.clone(), address: address.clone(), level });
    match command {
        Some(Command::Config { which: Which::Default }) => print!("{}", Config::default().complete().dump()?),
        Some(Command::Config { which: Which::Dump }) => print!("{}", warned(told()?).dump()?),
        Some(Command::Config { which: Which::Migrate }) => print!("{}", warned(load(Overrides::default())?).dump()?),
        Some(Command::Publish { topic, namespace }) => {
            daemon::publish(&told()?.config.grpc.address, &topic, &namespace)?;
        }
        Some(Command::OciHook { words }) => match tare_manager::hook::run(&words)? {},
        Some(Command::Fsck { repair }) => return fsck(&told()?.config, repair),
        None => {
            let Loaded { config, unknown } = told()?;
            let set_level = log(&config);
            for key in unknown {
                tracing::warn!("the configuration's {key} means nothing here");
            }
            memory::settle();
            daemon::run(&config, set_level)?;
        }
    }
    Ok(())
}

fn fsck(config: &Config, repair: bool) -> Result<()> {
    if repair && let Some(saved) = tare_manager::fsck::save(&config.root)? {
        println!(
            "the database was damaged: {} rows were saved; what it was is {}",
            saved.rows,
            saved.damaged.display()
        );
        for key in saved.lost {
            println!("lost: {}", key.replace('\0', " "));
        }
    }
    let (checked, findings) = tare_manager::fsck::check(&config.root)?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        return Ok(());
    }
    if repair {
        return checked.repair(&findings);
    }
    Err(Error::Unknown(format!("{} damaged: --repair takes away what is", findings.len())))
}

fn warned(loaded: Loaded) -> Config {
    for key in loaded.unknown {
        eprintln!("tared: {key} means nothing here");
    }
    loaded.config
}

/// Begins to log; returns what changes the level.
fn log(config: &Config) -> SetLevel {
    let (filter, handle) = reload::Layer::new(filter(config.debug.level));
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match config.debug.format {
        Format::Text => registry.with(format.with_ansi(false).with_filter(filter)).init(),
        Format::Json => registry.with(format.json().with_filter(filter)).init(),
    }
    Arc::new(move |level| handle.reload(self::filter(level)).map_err(|error| error.to_string()))
}

/// Libraries speak up only when something is wrong.
fn filter(level: Level) -> Targets {
    let level = match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets([
        ("tare_manager", level),
        ("tared", level),
        ("shim", level),
    ])
}
