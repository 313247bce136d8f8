//! `tarectl`: containers and images from a shell, in docker's words, over containerd's API.

mod client;
mod containers;
mod exec;
mod images;
mod io;
mod run;
mod size;

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

pub use client::Client;

/// Run containers with tared.
#[derive(Parser)]
#[command(name = "tarectl", version, max_term_width = 120)]
pub struct Cli {
    /// The daemon's socket
    #[arg(long, global = true, env = "TARE_ADDRESS", default_value_t = default_address())]
    address: String,
    /// The namespace to work in
    #[arg(short = 'N', long, global = true, env = "TARE_NAMESPACE", default_value_t = default_namespace())]
    namespace: String,
    #[command(subcommand)]
    command: Command,
}

fn default_address() -> String {
    std::env::var("CONTAINERD_ADDRESS").unwrap_or_else(|_| "/run/tared/tared.sock".into())
}

fn default_namespace() -> String {
    std::env::var("CONTAINERD_NAMESPACE").unwrap_or_else(|_| "default".into())
}

#[derive(Subcommand)]
enum Command {
    /// Create a container from an image and run it
    Run(Box<run::Args>),
    /// List containers
    Ps(containers::PsArgs),
    /// Run one more process in a container
    Exec(exec::Args),
    /// Show what a detached container has printed
    Logs(containers::LogsArgs),
    /// Send a signal to a container
    Kill(containers::KillArgs),
    /// Remove containers
    Rm(containers::RmArgs),
    /// Pull an image from a registry
    Pull(images::PullArgs),
    /// List images
    Images(images::ListArgs),
    /// Give an image one more name
    Tag(images::TagArgs),
    /// Remove images
    Rmi(images::RmiArgs),
    /// Show a container or an image as JSON
    Inspect(containers::InspectArgs),
    /// Show what containers use
    Stats(containers::StatsArgs),
    /// Show the versions of this client and of the daemon
    Version,
    /// Print a completion script for a shell
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder
    #[command(hide = true)]
    Man { folder: PathBuf },
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Does what the command line says and gives the exit code.
///
/// # Errors
/// The daemon's, or this machine's.
pub async fn main() -> anyhow::Result<i32> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "tarectl", &mut std::io::stdout());
            return Ok(0);
        }
        Command::Man { folder } => {
            clap_mangen::generate_to(Cli::command(), folder)?;
            return Ok(0);
        }
        _ => {}
    }
    let client = Client::connect(&cli.address, &cli.namespace).await?;
    match cli.command {
        Command::Run(args) => run::run(&client, *args).await,
        Command::Ps(args) => containers::ps(&client, &args).await,
        Command::Exec(args) => exec::exec(&client, args).await,
        Command::Logs(args) => containers::logs(&client, &args).await,
        Command::Kill(args) => containers::kill(&client, &args).await,
        Command::Rm(args) => containers::rm(&client, &args).await,
        Command::Pull(args) => images::pull(&client, &args).await,
        Command::Images(args) => images::list(&client, &args).await,
        Command::Tag(args) => images::tag(&client, &args).await,
        Command::Rmi(args) => images::rmi(&client, &args).await,
        Command::Inspect(args) => containers::inspect(&client, &args).await,
        Command::Stats(args) => containers::stats(&client, &args).await,
        Command::Version => version(&client).await,
        Command::Completion { .. } | Command::Man { .. } => Ok(0),
    }
}

async fn version(client: &Client) -> anyhow::Result<i32> {
    let server = client.version().version(client.request(())).await.map_err(client::said)?.into_inner();
    println!("Client:  {}\nServer:  {}", env!("CARGO_PKG_VERSION"), server.version);
    Ok(0)
}

/// Prints rows under a header, each column as wide as its widest cell.
fn table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", line.join("   ").trim_end());
    }
}
