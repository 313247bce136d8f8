//! `containerd-shim-tare-v2`: supervises the containers of one pod or task, and outlives the daemon that started it.
//!
//! `start` finds or makes the serving process of a group and prints its address; [`serve`] is that process: one thread
//! around one [`reactor`]; `delete` cleans up after one that is gone. `write-logs` is a process of the shim's own: [`logs`].
//!
//! Source: containerd's runtime v2 contract (`core/runtime/v2/README.md`).

mod address;
mod args;
mod bundle;
mod cgroup;
mod children;
mod connection;
mod delete;
mod error;
mod events;
mod info;
mod log;
mod logs;
mod options;
mod phase;
mod reactor;
mod rootfs;
mod runtime;
mod sandbox;
mod serve;
mod service;
mod start;
mod stdio;
mod sys;
mod task;

use std::process::ExitCode;

use args::{Args, Verb};

/// What ends a command; printed once, here.
type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::plain(&error.to_string()); // the daemon makes it part of its own error
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let args = Args::parse(std::env::args_os().skip(1))?;
    if args.version {
        return info::version();
    }
    if args.info {
        return info::print();
    }
    match args.verb {
        Verb::Start => start::start(&args),
        Verb::Delete => delete::delete(&args),
        Verb::WriteLogs => logs::write(),
        Verb::Serve => serve::serve(args),
    }
}
