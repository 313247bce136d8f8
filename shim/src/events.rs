//! What the daemon is told: one queue, one sender, in the order in which it happened.
//!
//! The head is sent until it is taken, over a new connection if need be: a daemon that was restarted hears what it
//! missed, and nobody hears of an exit before the start.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use prost::Message;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Pid;
use std::os::fd::OwnedFd;
use tare_proto::any;
use tare_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use tare_proto::containerd::types::Envelope;
use tare_proto::ttrpc::frame::{self, Decoder};
use tare_proto::ttrpc::{Code, answer, request};

use crate::children::Children;
use crate::error::{Doing as _, Failed};
use crate::reactor::{self, Bell};

/// How many wait at most while no daemon listens; later ones are dropped, and the log says so.
const LONGEST: usize = 4096;
/// Pauses between attempts, the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Where events go.
pub enum Daemon {
    /// Its ttrpc socket.
    Socket(PathBuf),
    /// No socket: a command of the daemon's, for each event.
    Publish { binary: PathBuf, address: String },
    /// Nobody asked.
    Nobody,
}

pub struct Events {
    namespace: String,
    daemon: Daemon,
    children: Rc<Children>,
    queue: RefCell<VecDeque<Envelope>>,
    changed: Bell,
    dropped: Cell<usize>,
}

impl Events {
    pub fn new(namespace: &str, daemon: Daemon, children: Rc<Children>) -> Rc<Events> {
        Rc::new(Events {
            namespace: namespace.to_owned(),
            daemon,
            children,
            queue: RefCell::default(),
            changed: Bell::default(),
            dropped: Cell::new(0),
        })
    }

    /// Queues one event of type `containerd.events.<name>`.
    pub fn tell(&self, topic: &str, name: &str, event: &impl Message) {
        if matches!(self.daemon, Daemon::Nobody) {
            return;
        }
        if self.queue.borrow().len() >= LONGEST {
            self.dropped.set(self.dropped.get() + 1);
            return;
        }
        self.queue.borrow_mut().push_back(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(any::pack(&format!("containerd.events.{name}"), event)),
        });
        self.changed.ring();
    }

    /// Returns when all has been told.
    pub async fn told(&self) {
        self.changed.until(|| self.queue.borrow().is_empty().then_some(())).await;
    }

    /// Sends what is queued, for ever.
    pub async fn send(self: Rc<Events>) {
        let mut link = None;
        let mut pause = PAUSES.0;
        loop {
            let event = self.changed.until(|| self.queue.borrow().front().cloned()).await;
            match self.send_one(&mut link, event).await {
                Ok(()) => {
                    self.queue.borrow_mut().pop_front();
                    pause = PAUSES.0;
                    self.report_dropped();
                    self.changed.ring();
                }
                Err(_) => {
                    // The daemon is away, which it may be for long and often: not worth a line each time.
                    link = None;
                    reactor::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    fn report_dropped(&self) {
        let dropped = self.dropped.take();
        if dropped > 0 {
            crate::log::warn(&format!("{dropped} events were dropped: the daemon was away for too long"));
        }
    }

    async fn send_one(&self, link: &mut Option<Link>, event: Envelope) -> Result<(), Failed> {
        match &self.daemon {
            Daemon::Socket(path) => {
                let link = match link {
                    Some(link) => link,
                    None => link.insert(Link::open(path)?),
                };
                // However long it takes: a daemon that was stopped finds what we sent when it goes on, and sent again it
                // would hear of one exit twice. One that has ended closes the connection.
                let sent = link.forward(event, &self.namespace).await;
                sent.doing(|| format!("sending an event to {}", path.display()))
            }
            Daemon::Publish { binary, address } => self.publish(binary, address, event).await,
            Daemon::Nobody => Ok(()),
        }
    }

    async fn publish(&self, binary: &Path, address: &str, event: Envelope) -> Result<(), Failed> {
        let doing = || format!("running {}", binary.display());
        let any = event.event.unwrap_or_default().encode_to_vec();
        let child = Command::new(binary)
            .args(["--address", address, "publish", "--topic", &event.topic, "--namespace", &event.namespace])
            .stdin(Stdio::from(input(&any).doing(doing)?))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .doing(doing)?;
        let child = self.children.adopt(Pid::from_child(&child)).doing(doing)?;
        match child.exit().await.status {
            0 => Ok(()),
            _ => Err(Errno::IO).doing(doing),
        }
    }
}

/// A file in memory that reads as `bytes`: standard input for a command, which nobody has to write to.
///
/// # Errors
/// There is no memory.
pub fn input(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek as _, Write as _};
    let mut file = std::fs::File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A connection to the daemon; one event at a time.
struct Link {
    socket: OwnedFd,
    stream: u32,
    decoder: Decoder,
}

impl Link {
    fn open(path: &Path) -> Result<Link, Failed> {
        let doing = || format!("connecting to {}", path.display());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).doing(doing)?;
        let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).doing(doing)?;
        connect(&socket, &address).doing(doing)?;
        Ok(Link { socket, stream: 1, decoder: Decoder::default() })
    }

    async fn forward(&mut self, envelope: Envelope, namespace: &str) -> Result<(), Errno> {
        let payload = ForwardRequest { envelope: Some(envelope) }.encode_to_vec();
        let call = request("containerd.services.events.ttrpc.v1.Events", "Forward", payload, namespace);
        let stream = self.stream;
        self.stream += 2;
        reactor::write_all(&self.socket, &frame::encode(stream, frame::REQUEST, &call)).await?;
        loop {
            while let Some(next) = self.decoder.take() {
                if let Ok(frame) = next
                    && frame.stream == stream
                    && frame.kind == frame::RESPONSE
                {
                    return match answer(&frame.data) {
                        Err(error) if error.code == Code::Unavailable as i32 => Err(Errno::AGAIN),
                        Err(error) => {
                            // It would be refused again.
                            crate::log::warn(&format!("the daemon refused an event: {error}"));
                            Ok(())
                        }
                        Ok(_) => Ok(()),
                    };
                }
            }
            reactor::readable(&self.socket).await?;
            let mut buffer = [0; 512];
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(0) => return Err(Errno::PIPE),
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use tare_proto::containerd::events::TaskStart;
    use tare_proto::ttrpc::server::{Incoming, Server, reply};

    use super::*;

    /// Takes events until `count` have come or the connection ends; answers each but the last `unanswered`.
    fn daemon(listener: &UnixListener, count: usize, unanswered: bool) -> Vec<u32> {
        let (mut socket, _) = listener.accept().unwrap();
        let mut server = Server::default();
        let mut pids = Vec::new();
        let mut buffer = [0; 4096];
        while pids.len() < count {
            let length = socket.read(&mut buffer).unwrap();
            server.push(&buffer[..length]);
            while let Some(Incoming::Request { stream, request }) = server.take() {
                let forwarded = ForwardRequest::decode(request.payload.as_slice()).unwrap().envelope.unwrap();
                assert_eq!(forwarded.topic, "/tasks/start");
                let event = any::unpack::<TaskStart>(&forwarded.event.unwrap(), "containerd.events.TaskStart");
                pids.push(event.unwrap().unwrap().pid);
                if !unanswered || pids.len() < count {
                    socket.write_all(&reply(stream, Ok(Vec::new()))).unwrap();
                }
            }
        }
        pids
    }

    #[test]
    fn a_daemon_that_goes_away_hears_the_rest_in_order_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.sock.ttrpc");
        let listener = UnixListener::bind(&path).unwrap();
        let heard = std::thread::spawn(move || {
            let first = daemon(&listener, 3, true); // it ends before it answers the third
            let second = daemon(&listener, 3, false);
            (first, second)
        });
        reactor::run(async move {
            let events = Events::new("ns", Daemon::Socket(path), Rc::new(Children::default()));
            reactor::spawn(events.clone().send());
            for pid in 1..=5 {
                events.tell("/tasks/start", "TaskStart", &TaskStart { container_id: "c".into(), pid });
            }
            events.told().await;
        })
        .unwrap();
        assert_eq!(heard.join().unwrap(), (vec![1, 2, 3], vec![3, 4, 5]));
    }

    #[test]
    fn without_a_socket_the_daemon_s_own_command_is_run() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (binary, out) = (dir.path().join("publish"), dir.path().join("out"));
        std::fs::write(&binary, format!("#!/bin/sh\necho $* > {0}; cat >> {0}\n", out.display())).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        reactor::run(async move {
            let daemon = Daemon::Publish { binary, address: "/d.sock".into() };
            let events = Events::new("ns", daemon, Rc::new(Children::default()));
            reactor::spawn(events.clone().send());
            events.tell("/tasks/start", "TaskStart", &TaskStart { container_id: "c".into(), pid: 7 });
            events.told().await;
        })
        .unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(out).unwrap()).into_owned();
        assert!(text.starts_with("--address /d.sock publish --topic /tasks/start --namespace ns\n"), "{text}");
        assert!(text.contains("containerd.events.TaskStart"), "{text}");
    }
}
