//! One client: requests in, answers out, many at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{getegid, geteuid};
use tare_proto::ttrpc::server::{Incoming, Server, reply};
use tare_proto::ttrpc::{Code, Error};
use tare_proto::wire::Request;

use crate::reactor::{self, Either, Latch};
use crate::task::Supervisor;
use crate::{log, sys};

/// Answers that a client does not take are kept up to this size; then the client is dropped.
const LONGEST_OUTPUT: usize = 16 << 20;

pub struct Connection {
    socket: OwnedFd,
    output: RefCell<VecDeque<u8>>,
    /// Set when the client is gone: nobody waits for an answer any more.
    pub closed: Latch<()>,
}

/// Accepts clients, for ever.
pub async fn accept(listener: UnixListener, supervisor: Rc<Supervisor>) {
    loop {
        match listener.accept() {
            Ok((socket, _)) => match check(&socket) {
                Ok(()) => reactor::spawn(serve(OwnedFd::from(socket), supervisor.clone())),
                Err(errno) => log::warn(&format!("a client was refused: {errno}")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if reactor::readable(&listener).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // No descriptors left, or the client gave up: others may fare better a moment later.
                log::warn(&format!("accepting a client: {error}"));
                reactor::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Only our own user may talk to us. Before a byte is read.
fn check(socket: &UnixStream) -> Result<(), Errno> {
    let peer = socket_peercred(socket)?;
    if peer.uid != geteuid() || peer.gid != getegid() {
        return Err(Errno::PERM);
    }
    socket.set_nonblocking(true).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

async fn serve(socket: OwnedFd, supervisor: Rc<Supervisor>) {
    let connection = Rc::new(Connection { socket, output: RefCell::default(), closed: Latch::new() });
    let mut server = Server::default();
    while let Ok(true) = connection.receive(&mut server).await {
        while let Some(incoming) = server.take() {
            match incoming {
                Incoming::Refused(frame) => connection.send(&frame),
                Incoming::Request { stream, request } => {
                    reactor::spawn(connection.clone().call(stream, request, supervisor.clone()));
                }
            }
        }
    }
    connection.closed.set(());
}

impl Connection {
    /// Whether there may be more.
    async fn receive(&self, server: &mut Server) -> Result<bool, Errno> {
        if let Either::Second(()) = reactor::race(reactor::readable(&self.socket), self.closed.wait()).await {
            return Ok(false);
        }
        let mut buffer = [0; 2048];
        match rustix::io::read(&self.socket, &mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                server.push(&buffer[..length]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// Answers one request. When its time is up it is answered so, but what was begun is not broken off half-way.
    async fn call(self: Rc<Connection>, stream: u32, request: Request, supervisor: Rc<Supervisor>) {
        let answered = Rc::new(Latch::new());
        if let Ok(limit @ 1..) = u64::try_from(request.timeout_nano) {
            let (this, answered) = (self.clone(), answered.clone());
            reactor::spawn(async move {
                if reactor::timeout(Duration::from_nanos(limit), answered.wait()).await.is_none() {
                    answered.set(());
                    this.send(&reply(stream, Err(Error::new(Code::DeadlineExceeded, "context deadline exceeded"))));
                }
            });
        }
        let answer = supervisor.call(&request, &self).await;
        drop(request);
        if answered.get().is_none() {
            answered.set(());
            self.send(&reply(stream, answer));
        }
        sys::trim_heap();
    }

    /// Writes what goes at once; the rest follows when the client takes it.
    fn send(self: &Rc<Connection>, frame: &[u8]) {
        let mut output = self.output.borrow_mut();
        let waiting = !output.is_empty();
        let written = if waiting { 0 } else { rustix::io::write(&self.socket, frame).unwrap_or(0) };
        output.extend(&frame[written..]);
        if output.len() > LONGEST_OUTPUT {
            self.closed.set(());
        } else if !waiting && !output.is_empty() {
            reactor::spawn(self.clone().flush());
        }
    }

    async fn flush(self: Rc<Connection>) {
        while !self.output.borrow().is_empty() {
            let ready = reactor::race(reactor::writable(&self.socket), self.closed.wait()).await;
            if !matches!(ready, Either::First(Ok(()))) {
                return;
            }
            let mut output = self.output.borrow_mut();
            match rustix::io::write(&self.socket, output.as_slices().0) {
                Ok(length) => drop(output.drain(..length)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.closed.set(()),
            }
        }
        self.output.borrow_mut().shrink_to_fit();
    }
}
