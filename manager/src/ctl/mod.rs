//! `tarectl`: containers and images from a shell, in docker's words, over containerd's API.

mod age;
mod attend;
mod client;
mod container;
mod create;
mod credentials;
mod each;
mod exec;
mod images;
mod inspect;
mod io;
mod keys;
mod lease;
mod lifecycle;
mod list;
mod log;
mod logs;
mod network;
mod ps;
mod remove;
mod run;
mod signal;
mod size;
mod stats;
mod stream;
mod system;
mod template;
mod terminal;
mod top;
mod view;

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use client::Client;

/// Run containers with tared.
#[derive(Parser)]
#[command(name = "tarectl", version, max_term_width = 120, infer_long_args = false)]
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
    #[command(disable_help_flag = true)]
    Run {
        #[command(flatten)]
        args: Box<run::Args>,
        /// Print help
        #[arg(long, action = clap::ArgAction::HelpLong)]
        help: Option<bool>,
    },
    /// Create a container from an image, without running it
    #[command(disable_help_flag = true)]
    Create {
        #[command(flatten)]
        args: Box<create::Args>,
        /// Print help
        #[arg(long, action = clap::ArgAction::HelpLong)]
        help: Option<bool>,
    },
    /// Start containers that do not run
    Start(run::StartArgs),
    /// Stop containers
    Stop(lifecycle::StopArgs),
    /// Stop containers and start them again
    Restart(lifecycle::StopArgs),
    /// Send a signal to containers
    Kill(lifecycle::KillArgs),
    /// Freeze containers
    Pause(lifecycle::NamesArgs),
    /// Let frozen containers go on
    Unpause(lifecycle::NamesArgs),
    /// Wait for containers to end and print their exit codes
    Wait(lifecycle::NamesArgs),
    /// Remove containers
    Rm(remove::Args),
    /// Run one more process in a container
    Exec(exec::Args),
    /// Watch a container that runs, and give it input
    Attach(run::AttachArgs),
    /// Show what a container has printed
    Logs(logs::Args),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(ps::Args),
    /// Show the processes of a container
    Top(top::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Show containers or images as JSON
    Inspect(inspect::Args),
    /// Make, list and remove networks
    #[command(subcommand, visible_alias = "network")]
    Net(network::Command),
    /// Pull an image from a registry
    Pull(images::PullArgs),
    /// Push an image to its registry
    Push(images::PushArgs),
    /// Keep a name and a password for a registry, where docker keeps them
    Login(credentials::LoginArgs),
    /// Forget the name and the password for a registry
    Logout(credentials::LogoutArgs),
    /// Write images into an archive
    Save(images::SaveArgs),
    /// Read images from an archive
    Load(images::LoadArgs),
    /// List images
    Images(images::ListArgs),
    /// Give an image one more name
    Tag(images::TagArgs),
    /// Remove images
    Rmi(images::RmiArgs),
    /// List, make and remove namespaces
    #[command(subcommand, visible_alias = "ns")]
    Namespace(system::NamespaceCommand),
    /// Show what happens, as it happens
    Events(system::EventsArgs),
    /// Show facts about the daemon
    Info(system::InfoArgs),
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
    /// Write a container's output into its log; a shim starts this
    #[command(hide = true)]
    Logger { log: PathBuf },
}

/// docker's exit code for what is wrong with the command line, and for `run` when it does not come to running.
const REFUSED: i32 = 125;

/// Does what our command line says and gives the exit code, having said why it is not 0.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let code = if matches!(cli.command, Command::Run { .. } | Command::Create { .. }) { REFUSED } else { 1 };
    perform(cli).unwrap_or_else(|error| {
        eprintln!("tarectl: {error:#}");
        error.downcast_ref::<container::Coded>().map_or(code, |coded| coded.code)
    })
}

/// One line, as docker has it, where clap would explain at length; help and version as they are.
fn refuse(error: &clap::Error) -> i32 {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print(); // nobody reads it
        return if error.use_stderr() { REFUSED } else { 0 };
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // What is missing is listed one a line.
    let said: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.is_empty() && !line.starts_with("Usage:")).collect();
    eprintln!("tarectl: {} (see --help)", said.join(" "));
    REFUSED
}

fn perform(cli: Cli) -> anyhow::Result<i32> {
    match &cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "tarectl", &mut std::io::stdout());
            return Ok(0);
        }
        Command::Man { folder } => {
            clap_mangen::generate_to(Cli::command(), folder)?;
            return Ok(0);
        }
        Command::Login(args) => return credentials::login(args),
        Command::Logout(args) => return credentials::logout(args),
        Command::Logger { log } => {
            log::write::run(log)?;
            return Ok(0);
        }
        _ => {}
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(cli))
}

async fn serve(cli: Cli) -> anyhow::Result<i32> {
    let client = &Client::connect(&cli.address, &cli.namespace).await?;
    match cli.command {
        Command::Run { args, .. } => run::run(client, &args).await,
        Command::Create { args, .. } => create::create(client, &args).await,
        Command::Start(args) => run::start(client, &args).await,
        Command::Stop(args) => lifecycle::stop(client, &args).await,
        Command::Restart(args) => lifecycle::restart(client, &args).await,
        Command::Kill(args) => lifecycle::kill(client, &args).await,
        Command::Pause(args) => lifecycle::pause(client, &args).await,
        Command::Unpause(args) => lifecycle::unpause(client, &args).await,
        Command::Wait(args) => lifecycle::wait(client, &args).await,
        Command::Rm(args) => remove::rm(client, &args).await,
        Command::Exec(args) => exec::exec(client, &args).await,
        Command::Attach(args) => run::attach(client, &args).await,
        Command::Logs(args) => logs::logs(client, &args).await,
        Command::Ps(args) => ps::ps(client, &args).await,
        Command::Top(args) => top::top(client, &args).await,
        Command::Stats(args) => stats::stats(client, &args).await,
        Command::Inspect(args) => inspect::inspect(client, &args).await,
        Command::Net(command) => network::network(client, &command).await,
        Command::Pull(args) => images::pull(client, &args).await,
        Command::Push(args) => images::push(client, &args).await,
        Command::Save(args) => images::save(client, &args).await,
        Command::Load(args) => images::load(client, &args).await,
        Command::Namespace(command) => system::namespace(client, &command).await,
        Command::Events(args) => system::events(client, &args).await,
        Command::Info(args) => system::info(client, &args).await,
        Command::Images(args) => images::list(client, &args).await,
        Command::Tag(args) => images::tag(client, &args).await,
        Command::Rmi(args) => images::rmi(client, &args).await,
        Command::Version => version(client).await,
        Command::Completion { .. }
        | Command::Man { .. }
        | Command::Logger { .. }
        | Command::Login(_)
        | Command::Logout(_) => {
            Ok(0) // done before there was a client
        }
    }
}

async fn version(client: &Client) -> anyhow::Result<i32> {
    let server = client.version().version(client.request(())).await.map_err(client::said)?.into_inner();
    println!("Client:  {}\nServer:  {}", env!("CARGO_PKG_VERSION"), server.version);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_explained() {
        Cli::command().debug_assert();
    }
}
