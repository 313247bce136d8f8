//! The writer process: takes logs from the shim and gives each a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::io::Errno;

use super::message::{self, Order};
use super::stream::Stream;
use crate::error::Doing as _;
use crate::{Error, log, sys};

/// A thread polls, copies and writes; nothing of it is deep.
const STACK: usize = 64 << 10;

/// Starts it; it takes logs from its standard input and says what goes wrong where we do.
pub fn start(namespace: &str, pod: &str, orders: OwnedFd) -> Result<Child, Errno> {
    let started = std::env::current_exe().and_then(|own| {
        let mut command = Command::new(own);
        command.args(["-namespace", namespace, "-id", pod, "write-logs"]).env_clear().process_group(0);
        command.stdin(orders).stdout(Stdio::null()).spawn()
    });
    started.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Writes what it is given, until the shim is gone and all output has ended.
///
/// # Errors
/// Standard input is no socket.
pub fn write() -> Result<(), Error> {
    sys::keep_heap_small();
    let orders = rustix::stdio::stdin();
    let mut threads: Vec<thread::JoinHandle<()>> = Vec::new();
    loop {
        match message::receive(&orders) {
            Ok(Some((bytes, fds))) => {
                threads.retain(|thread| !thread.is_finished());
                match Order::decode(&bytes).and_then(|order| open(order, fds)) {
                    Some(Ok(thread)) => threads.push(thread),
                    Some(Err(error)) => log::warn(&format!("starting a thread for a log: {error}")),
                    None => log::warn("the shim has asked for no log"),
                }
            }
            Err(Errno::INTR) => {}
            Ok(None) => break,
            Err(errno) => return Err(errno).doing(|| "taking logs from standard input".into())?,
        }
    }
    for thread in threads {
        if thread.join().is_err() {
            log::warn("a log was not written to its end");
        }
    }
    Ok(())
}

/// None if it is not that. The log's own socket goes with it when the thread does not start, and the shim sees it closed.
fn open(order: Order, fds: Vec<OwnedFd>) -> Option<io::Result<thread::JoinHandle<()>>> {
    let Order::Open { place, with_error } = order else { return None };
    let mut fds = fds.into_iter();
    let (socket, output) = (fds.next()?, fds.next()?);
    let error = if with_error { Some(fds.next()?) } else { None };
    let run = move || Stream::run(&place, socket, [Some(output), error]);
    Some(thread::Builder::new().stack_size(STACK).spawn(run))
}
