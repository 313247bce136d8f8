//! The serving process: one thread that waits for whatever happens next, and handles it without waiting.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::connection::{Connection, Reply};
use crate::console::{ConsoleSocket, Pump, Wants};
use crate::flags::Flags;
use crate::process::Exit;
use crate::publisher::Publisher;
use crate::task::Task;
use crate::{Doing as _, Error, sys};

/// How long events may take to go out before the process ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// What is done when a command of the runtime has ended, well or not.
type After = Box<dyn FnOnce(&mut Shim, bool)>;

struct Running {
    child: Child,
    pidfd: OwnedFd,
    after: After,
}

pub struct Shim {
    pub namespace: String,
    socket: PathBuf,
    listener: UnixListener,
    signals: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    commands: BTreeMap<u64, Running>,
    consoles: BTreeMap<u64, (ConsoleSocket, String, String)>,
    pumps: BTreeMap<u64, (Pump, Wants)>,
    pub tasks: BTreeMap<String, Task>,
    pub publisher: Publisher,
    next: u64,
    leaving: Option<Instant>,
}

/// Whatever can happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Client,
    Signal,
    Daemon,
    Connection(u64),
    Command(u64),
    Console(u64),
    Pump(u64),
    Process(String, String),
}

/// Serves until the last task is gone and `Shutdown` was called.
pub fn serve(flags: &Flags) -> Result<(), Error> {
    rustix::process::set_child_subreaper(Pid::from_raw(1)).doing(|| "becoming a subreaper".into())?;
    let listener =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).doing(|| "taking over the socket".into())?;
    let null = std::fs::File::open("/dev/null").doing(|| "opening /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).doing(|| "closing standard input".into())?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).doing(|| "listening".into())?;
    let mut shim = Shim {
        namespace: flags.namespace.clone(),
        socket: flags.socket.clone().into(),
        listener,
        signals: sys::signals().doing(|| "blocking signals".into())?,
        connections: BTreeMap::new(),
        commands: BTreeMap::new(),
        consoles: BTreeMap::new(),
        pumps: BTreeMap::new(),
        tasks: BTreeMap::new(),
        publisher: Publisher::new(std::env::var("TTRPC_ADDRESS").unwrap_or_default(), flags.namespace.clone()),
        next: 1,
        leaving: None,
    };
    let ended = shim.serve_until_shutdown();
    let _ = std::fs::remove_file(&shim.socket); // the next start makes it anew
    ended
}

impl Shim {
    fn serve_until_shutdown(&mut self) -> Result<(), Error> {
        while !self.may_leave() {
            for source in self.wait()? {
                self.handle(source)?;
            }
        }
        Ok(())
    }

    fn may_leave(&self) -> bool {
        self.leaving.is_some_and(|since| {
            let said =
                self.publisher.is_empty() && self.connections.values().all(|connection| !connection.wants_to_write());
            said || since.elapsed() > FAREWELL
        })
    }

    /// From here on no new task comes; the process ends when everything is said.
    pub fn leave(&mut self) {
        self.leaving.get_or_insert_with(Instant::now);
    }

    /// Waits until something happens, and gives all that has happened.
    fn wait(&mut self) -> Result<Vec<Source>, Error> {
        let mut sources = vec![Source::Client, Source::Signal];
        let mut watched = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        let writing = |wants: bool| if wants { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        if let Some((socket, wants)) = self.publisher.socket() {
            sources.push(Source::Daemon);
            watched.push(PollFd::new(socket, writing(wants)));
        }
        for (id, connection) in &self.connections {
            sources.push(Source::Connection(*id));
            watched.push(PollFd::new(&connection.socket, writing(connection.wants_to_write())));
        }
        for (id, command) in &self.commands {
            sources.push(Source::Command(*id));
            watched.push(PollFd::new(&command.pidfd, PollFlags::IN));
        }
        for (id, (console, ..)) in &self.consoles {
            sources.push(Source::Console(*id));
            watched.push(PollFd::new(&console.listener, PollFlags::IN));
        }
        for (id, (pump, wants)) in &self.pumps {
            sources.push(Source::Pump(*id));
            watched.push(match wants {
                Wants::Writing => PollFd::new(&pump.to, PollFlags::OUT),
                _ => PollFd::new(&pump.from, PollFlags::IN),
            });
        }
        for (id, task) in &self.tasks {
            for (exec, process) in task.processes() {
                if let Some(pidfd) = &process.pidfd {
                    sources.push(Source::Process(id.clone(), exec.to_owned()));
                    watched.push(PollFd::new(pidfd, PollFlags::IN));
                }
            }
        }
        let timeout = self.publisher.timeout().or(self.leaving.map(|_| Duration::from_millis(50)));
        let timeout = timeout
            .map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).doing(|| "waiting".into()),
        }
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut happened: Vec<Source> =
            sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(source, _)| source).collect();
        // Ends of processes come after all else: a create that has just ended first learns whose end it is.
        happened.sort_by_key(|source| matches!(source, Source::Process(..)));
        if happened.is_empty() {
            self.publisher.advance();
        }
        Ok(happened)
    }

    fn handle(&mut self, source: Source) -> Result<(), Error> {
        match source {
            Source::Client => self.accept(),
            Source::Signal => self.signal()?,
            Source::Daemon => self.publisher.advance(),
            Source::Connection(id) => self.receive(id),
            Source::Command(id) => self.command_ended(id),
            Source::Console(id) => self.console_arrived(id),
            Source::Pump(id) => self.pump(id),
            Source::Process(task, exec) => self.process_ended(&task, &exec),
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            match Connection::accept(socket) {
                Ok(connection) => {
                    let id = self.number();
                    self.connections.insert(id, connection);
                }
                Err(error) => eprintln!("a client was refused: {error}"),
            }
        }
    }

    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.flush();
        let Some(requests) = connection.receive().filter(|_| !connection.is_stuck()) else {
            self.connections.remove(&id);
            return;
        };
        for frame in requests {
            self.call(Reply { connection: id, stream: frame.stream }, &frame.data);
        }
    }

    /// Answers a call, if its client is still there.
    pub fn reply(&mut self, reply: Reply, answer: Result<Vec<u8>, tare_proto::ttrpc::Error>) {
        if let Some(connection) = self.connections.get_mut(&reply.connection) {
            connection.send(reply.stream, answer);
        }
    }

    /// Starts a command of the runtime; `after` runs when it has ended.
    ///
    /// # Errors
    /// The runtime is not there.
    pub fn run(&mut self, mut command: Command, after: impl FnOnce(&mut Shim, bool) + 'static) -> Result<(), Error> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().doing(|| format!("running {name}"))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).doing(|| format!("watching {name}"))?;
        let id = self.number();
        self.commands.insert(id, Running { child, pidfd, after: Box::new(after) });
        Ok(())
    }

    fn command_ended(&mut self, id: u64) {
        let Some(mut running) = self.commands.remove(&id) else { return };
        let well = running.child.wait().is_ok_and(|status| status.success());
        (running.after)(self, well);
        self.reap_orphans();
        sys::trim_memory();
    }

    fn signal(&mut self) -> Result<(), Error> {
        let mut information = [0; 128];
        while let Ok(128) = rustix::io::read(&self.signals, &mut information) {
            let number = i32::from_ne_bytes([information[0], information[1], information[2], information[3]]);
            if number == libc::SIGCHLD {
                self.reap_orphans();
            } else {
                self.leave(); // the containers go on without us; `delete` or a new start finds them
            }
        }
        Ok(())
    }

    /// Waits for processes whose parents have gone. While a command runs, an unknown one may be a container's first
    /// process that `create` has not told of yet, so nothing is taken.
    fn reap_orphans(&mut self) {
        while self.commands.is_empty()
            && let Some(pid) = sys::ended_child()
        {
            let owner = self.tasks.iter().find_map(|(id, task)| {
                let process = task.processes().find(|(_, process)| {
                    process.pid == pid.as_raw_nonzero().get().unsigned_abs() && process.pidfd.is_some()
                });
                process.map(|(exec, _)| (id.clone(), exec.to_owned()))
            });
            match owner {
                Some((task, exec)) => self.process_ended(&task, &exec),
                None => drop(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)), // nobody asks how it ended
            }
        }
    }

    fn process_ended(&mut self, task: &str, exec: &str) {
        let Some(process) = self.tasks.get_mut(task).and_then(|task| task.process_mut(exec)) else { return };
        let Some(pidfd) = &process.pidfd else { return };
        let status = match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(ended)) => ended.exit_status().unwrap_or_else(|| 128 + ended.terminating_signal().unwrap_or(0)),
            Ok(None) => return, // readable for another reason; it is still there
            Err(_) => 255,      // not our child: a runtime that does not leave it to its subreaper
        };
        process.pidfd = None;
        self.exited(task, exec, Exit { status: status.unsigned_abs(), at: SystemTime::now() });
    }

    /// A place for the runtime to hand a terminal to.
    ///
    /// # Errors
    /// The temporary folder cannot be written.
    pub fn console(&mut self, task: &str, exec: &str) -> Result<PathBuf, Error> {
        let id = self.number();
        let console = ConsoleSocket::make(std::process::id(), id)?;
        let path = console.path.clone();
        self.consoles.insert(id, (console, task.to_owned(), exec.to_owned()));
        Ok(path)
    }

    fn console_arrived(&mut self, id: u64) {
        let Some((console, task, exec)) = self.consoles.remove(&id) else { return };
        let Some(master) = console.master() else { return };
        if let Err(error) = self.attach(&task, &exec, master) {
            eprintln!("the terminal of {task} {exec}: {error}");
        }
    }

    /// Forgets the sockets of a process that will not hand over a terminal any more.
    pub fn forget_console(&mut self, task: &str, exec: &str) {
        self.consoles.retain(|_, (_, of_task, of_exec)| of_task != task || of_exec != exec);
    }

    /// Copies between a terminal and the client's fifos.
    fn attach(&mut self, task: &str, exec: &str, master: OwnedFd) -> Result<(), Error> {
        let Some(process) = self.tasks.get_mut(task).and_then(|task| task.process_mut(exec)) else { return Ok(()) };
        let copy = || master.try_clone().doing(|| "copying a descriptor".into());
        let mut pumps = Vec::new();
        if let Some(output) = process.stdio.open_terminal_output()? {
            pumps.push(Pump::new(copy()?, output));
        }
        if let Some(input) = process.stdio.open_terminal_input()? {
            pumps.push(Pump::new(input, copy()?));
        }
        process.master = Some(master);
        for pump in pumps {
            let id = self.number();
            self.pumps.insert(id, (pump, Wants::Reading));
            self.pump(id);
        }
        Ok(())
    }

    fn pump(&mut self, id: u64) {
        let Some((pump, wants)) = self.pumps.get_mut(&id) else { return };
        *wants = pump.advance();
        if *wants == Wants::Nothing {
            self.pumps.remove(&id);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
