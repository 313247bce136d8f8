//! The command line: what runc's callers send, and the answers they read. One file a command, each a list of steps.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod flags;
mod foreground;
mod kill;
mod list;
mod log;
mod pause;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::path::PathBuf;

pub use create::connect_to;

use flags::{Order, Parsed, parse, switch, value};
use log::Log;

use crate::child::{Step, Stuck};
use crate::error::Failed;
use crate::{bundle, cgroup, rootless, seccomp};

/// What a command ends with if not with success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    /// A refusal in words that callers match.
    #[error("{0}")]
    Refused(String),
    #[error("unable to start container process: {0}")]
    Start(String),
    /// The program cannot be executed. The process that was to become it has said so where its own output goes.
    #[error("unable to start container process: {0}")]
    Exec(String),
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    State(#[from] crate::state::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Systemd(#[from] crate::systemd::Error),
    #[error(transparent)]
    Rootless(#[from] crate::rootless::Error),
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    #[error(transparent)]
    Hook(#[from] crate::hooks::Error),
    #[error(transparent)]
    Criu(#[from] crate::criu::Error),
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Error {
    /// What a process got stuck at on its last steps.
    pub fn at_the_end(stuck: Stuck, sentence: String) -> Error {
        if stuck.step == Step::Exec { Error::Exec(sentence) } else { Error::Start(sentence) }
    }

    /// For a command whose standard error is not the process's: it tells itself what that has told elsewhere.
    fn said_here(self) -> Error {
        match self {
            Error::Exec(sentence) => Error::Start(sentence),
            other => other,
        }
    }
}

/// What stands before the command.
pub struct Global {
    /// Absolute.
    pub root: PathBuf,
    /// Whether `--root` was given: a default root that is not there is no error.
    pub root_given: bool,
    pub log: Log,
    pub cgroups: Cgroups,
    /// Cgroups that may not be made are done without, if no limits are asked for.
    pub rootless: bool,
}

/// Who makes a container's cgroups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// We do, in the file system.
    Files,
    /// systemd does, when we ask.
    Systemd,
    /// Nobody: the container stays in ours.
    None,
}

const GLOBAL: &[flags::Flag] = &[
    value(&["root"]),
    value(&["log"]),
    value(&["log-format"]),
    switch(&["debug"]),
    switch(&["systemd-cgroup"]),
    value(&["rootless"]),
    value(&["cgroup-manager"]),
    value(&["criu"]),
    switch(&["version", "v"]),
    switch(&["help", "h"]),
];

/// Which program we are called as: `runc` gets runc's answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Tare,
    Runc,
}

type Command = fn(&Global, &[String]) -> Result<i32, Error>;

impl Name {
    fn as_str(self) -> &'static str {
        match self {
            Name::Tare => "tare",
            Name::Runc => "runc",
        }
    }
}

/// Each command: its name, what it does in a line, and its function. `help` prints this.
const COMMANDS: &[(&str, &str, Command)] = &[
    ("checkpoint", "write what a running container is to files, and stop it", checkpoint::main),
    ("create", "create a container, which then waits for start", create::main),
    ("delete", "remove what a stopped container holds", delete::main),
    ("events", "print statistics and out-of-memory events", events::main),
    ("exec", "run one more process in a container", exec::main),
    ("features", "print what this runtime supports, as JSON", features::main),
    ("kill", "send a signal to a container's first process", kill::main),
    ("list", "list the containers of this root", list::main),
    ("pause", "stop all processes of a container", pause::pause),
    ("ps", "list the processes of a container", ps::main),
    ("restore", "run a container from the files of a checkpoint", restore::main),
    ("resume", "let the processes of a paused container go on", pause::resume),
    ("run", "create and start a container", run::main),
    ("spec", "write a config.json to begin with", spec::main),
    ("start", "run the program of a created container", start::main),
    ("state", "print the state of a container, as JSON", state::main),
    ("update", "change the limits of a container", update::main),
];

/// Reads the command line, does what it says and returns the exit code.
pub fn main(words: Vec<String>) -> i32 {
    let name = match words.first().map(|path| path.rsplit('/').next().unwrap_or(path)) {
        Some("runc") => Name::Runc,
        _ => Name::Tare,
    };
    let parsed = match parse(words.get(1..).unwrap_or_default(), GLOBAL, Order::First) {
        Ok(parsed) => parsed,
        Err(error) => {
            Log::default().error(&error.to_string());
            return 1;
        }
    };
    if parsed.is_set("version") {
        print!("{}", features::version(name));
        return 0;
    }
    let Some((command, rest)) = parsed.words.split_first() else {
        print!("{}", help(name));
        return 0;
    };
    if parsed.is_set("help") || command == "help" || command == "h" {
        print!("{}", help(name));
        return 0;
    }
    let (log, opened) = Log::open(parsed.value("log"), parsed.value("log-format"), parsed.is_set("debug"));
    let log_error = |error: &Error| match error {
        // As runc says it: callers look for these words.
        Error::Start(_) => log.error(&format!("{} {command} failed: {error}", name.as_str())),
        Error::Exec(_) => log.error_told(&format!("{} {command} failed: {error}", name.as_str())),
        error => log.error(&error.to_string()),
    };
    if let Err(error) = opened {
        Log::default().error(&error);
        return 1;
    }
    let known = COMMANDS.iter().find(|(known, _, _)| known == command);
    if matches!(rest.first().map(String::as_str), Some("-h" | "--help" | "-help")) {
        return help_on(name, command, known.map(|(_, what, _)| *what));
    }
    let Some((_, _, run)) = known else {
        log.error(&format!("no such command: {command}"));
        return 3;
    };
    let global = match global(&parsed, name, log.clone()) {
        Ok(global) => global,
        Err(error) => {
            log_error(&error);
            return 1;
        }
    };
    match run(&global, rest) {
        Ok(code) => code,
        Err(error) => {
            log_error(&error);
            if command == "exec" { 255 } else { 1 }
        }
    }
}

fn global(parsed: &Parsed, name: Name, log: Log) -> Result<Global, Error> {
    let rootless = match parsed.value("rootless") {
        None | Some("" | "auto") => rootless::unprivileged() || rootless::inside(),
        Some("true") => true,
        Some("false") => false,
        Some(other) => return Err(Error::Usage(format!("--rootless: {other:?} is not one of true, false and auto"))),
    };
    let cgroups = match parsed.value("cgroup-manager") {
        None if parsed.is_set("systemd-cgroup") => Cgroups::Systemd,
        None | Some("cgroupfs") => Cgroups::Files,
        Some("systemd") => Cgroups::Systemd,
        Some("disabled") => Cgroups::None,
        Some(other) => {
            let why = format!("--cgroup-manager: {other:?} is not one of cgroupfs, systemd and disabled");
            return Err(Error::Usage(why));
        }
    };
    let root = parsed.value("root").map_or_else(|| default_root(name), PathBuf::from);
    let root =
        std::path::absolute(&root).map_err(|error| Error::Usage(format!("--root {}: {error}", root.display())))?;
    Ok(Global { root, root_given: parsed.value("root").is_some(), log, cgroups, rootless })
}

/// `/run/tare`; for a user, `tare` in the folder that they have for such things.
fn default_root(name: Name) -> PathBuf {
    let folder = match name {
        Name::Tare => "tare",
        Name::Runc => "runc",
    };
    let run = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(run) if !run.is_empty() && rootless::honors_runtime_dir() => PathBuf::from(run),
        _ => PathBuf::from("/run"),
    };
    run.join(folder)
}

fn help(name: Name) -> String {
    let program = name.as_str();
    let mut text = format!(
        "NAME:\n   {program}, used as runc - Open Container Initiative runtime\n\n\
         {program} runs containers from OCI bundles.\n\nUsage: {program} [--root DIR] [--log FILE] [--log-format text|json] \
         [--debug] COMMAND …\n\nCommands:\n"
    );
    for (command, what, _) in COMMANDS {
        text += &format!("  {command:<10} {what}\n");
    }
    text + "\nThe flags of each command are runc's.\n"
}

fn help_on(name: Name, command: &str, what: Option<&str>) -> i32 {
    let program = name.as_str();
    let Some(what) = what else {
        println!("No help topic for '{command}'");
        return 3;
    };
    println!(
        "NAME:\n   {program} {command}, used as runc {command} - {what}\n\n\
         USAGE:\n   {program} {command} [flags] …\n\nIts flags are runc's: see runc-{command}(8)."
    );
    0
}

/// The one container id that a command takes, and nothing else.
fn only_id(command: &str, words: &[String]) -> Result<crate::state::Id, Error> {
    match words {
        [id] => Ok(crate::state::Id::new(id)?),
        _ => Err(Error::Usage(format!("\"{command}\" requires exactly 1 argument: the container's id"))),
    }
}
