//! Standard input, output and error of a container's process.
//!
//! | asked for | the process gets |
//! |---|---|
//! | nothing | `/dev/null` |
//! | a path | the fifo itself, which the client has made; a plain file is appended to |
//! | `file:///path` | that file, made if need be, appended to |
//! | `binary:///program?key=value`, `binary-v2://…` | pipes to that program, a [`logger`] |
//! | `cri:///path` | pipes to the pod's writer of [`logs`](crate::logs) |
//! | a terminal | the terminal; its master side is copied to and from the above ([`terminal`]) |
//!
//! But for terminals no byte passes through us, and an exec's output only through the kernel ([`relay`]). We hold a reading end of each output fifo, so that a client that goes
//! away neither blocks nor kills the process and another may come; and a writing end of the input, so that input ends
//! when a client says so and not when one leaves.

mod logger;
mod relay;
mod terminal;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio as Given;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{FileType, Gid, OFlags, Uid, fchown};

use crate::children::Children;
use crate::error::{Doing as _, Failed};
use crate::logs::{self, Log, Logs};
use crate::reactor;
use crate::runtime::Streams;
use logger::Logger;
use relay::Relay;
pub use terminal::{ConsoleSocket, Terminal};

/// How long output may take to drain after the process has ended: a child of it may hold the other end for ever.
const DRAIN: Duration = Duration::from_secs(10);

/// What a client asked for, as it wrote it.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{field}: {uri}: fifos, file://, binary:// and cri:// are supported")]
    Scheme { field: &'static str, uri: String },
    #[error("stdin: {0}: only a fifo is supported")]
    Input(String),
    #[error("stderr: {0}: a logger, or a log, takes both outputs, so stdout and stderr must name the same")]
    Loggers(String),
    #[error("{uri}: {reason}")]
    Uri { uri: String, reason: &'static str },
    #[error("{uri}: {error}")]
    Log { uri: String, error: logs::Bad },
    #[error("the logger {0} ended before it was ready")]
    Logger(PathBuf),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Where an output goes.
#[derive(Debug, PartialEq, Eq)]
enum Sink {
    Null,
    Path(PathBuf),
    File(PathBuf),
    Logger(logger::Program),
    Log(logs::Place),
}

impl Sink {
    fn parse(field: &'static str, uri: &str) -> Result<Sink, Error> {
        Ok(match uri.split_once("://") {
            None if uri.is_empty() => Sink::Null,
            None => Sink::Path(uri.into()),
            Some(("file", path)) if path.starts_with('/') => Sink::File(path.into()),
            Some(("binary" | "binary-v2", _)) => Sink::Logger(logger::Program::parse(uri)?),
            Some(("cri", rest)) => {
                let place = logs::Place::parse(rest);
                Sink::Log(place.map_err(|error| Error::Log { uri: uri.to_owned(), error })?)
            }
            Some(_) => return Err(Error::Scheme { field, uri: uri.to_owned() }),
        })
    }
}

/// What is open for one process as long as it lives.
#[derive(Default)]
pub struct Stdio {
    /// Reading ends of output fifos.
    held: Vec<OwnedFd>,
    relays: Vec<Relay>,
    /// The writing end of the input fifo.
    input: Option<OwnedFd>,
    logger: Option<Logger>,
    log: Option<Rc<Log>>,
    terminal: Option<Terminal>,
}

/// For whom a process is opened, as loggers are told it.
pub struct Owner<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    pub children: &'a Rc<Children>,
    pub logs: &'a Rc<Logs>,
    /// Who owns the pipes.
    pub uid: u32,
    pub gid: u32,
    /// The process may leave children behind when it ends: it is an exec.
    pub leaves_children: bool,
}

impl Owner<'_> {
    /// Makes a pipe theirs whom the options name: who may open `/dev/stdout` again is its owner.
    fn give(&self, pipe: &OwnedFd) -> Result<(), Failed> {
        if (self.uid, self.gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        fchown(pipe, Some(uid), Some(gid)).doing(|| format!("giving a pipe to {}:{}", self.uid, self.gid))
    }
}

impl Stdio {
    /// Opens what a process without a terminal gets.
    ///
    /// # Errors
    /// A path cannot be opened, or a scheme is not supported.
    pub async fn open(asked: &Asked, owner: &Owner<'_>) -> Result<(Stdio, Streams), Error> {
        let mut stdio = Stdio::default();
        let stdin = stdio.open_input(&asked.stdin)?;
        stdin.as_ref().map_or(Ok(()), |stdin| owner.give(stdin))?;
        let stdin = stdin.map_or_else(Given::null, Given::from);
        let sinks = (Sink::parse("stdout", &asked.stdout)?, Sink::parse("stderr", &asked.stderr)?);
        let (stdout, stderr) = match sinks {
            (Sink::Logger(program), stderr) => {
                if stderr != Sink::Null && stderr != Sink::Logger(program.clone()) {
                    return Err(Error::Loggers(asked.stderr.clone()));
                }
                let (logger, [stdout, stderr]) = Logger::start(program, owner).await?;
                stdio.logger = Some(logger);
                (Given::from(stdout), Given::from(stderr))
            }
            (Sink::Log(place), stderr) => {
                if stderr != Sink::Null && stderr != Sink::Log(place.clone()) {
                    return Err(Error::Loggers(asked.stderr.clone()));
                }
                let with_error = stderr != Sink::Null;
                let (log, stdout, stderr) = owner.logs.open(place, with_error, (owner.uid, owner.gid)).await?;
                stdio.log = Some(log);
                (Given::from(stdout), stderr.map_or_else(Given::null, Given::from))
            }
            (_, Sink::Logger(_) | Sink::Log(_)) => return Err(Error::Loggers(asked.stderr.clone())),
            (stdout, stderr) => {
                let same = stdout == stderr;
                let stdout = stdio.output(stdout, owner)?;
                let stderr = if same { copy(stdout.as_ref())? } else { stdio.output(stderr, owner)? };
                (stdout.map_or_else(Given::null, Given::from), stderr.map_or_else(Given::null, Given::from))
            }
        };
        Ok((stdio, Streams { stdin, stdout, stderr }))
    }

    /// Opens what a terminal is copied to and from, and starts copying.
    ///
    /// # Errors
    /// As [`Stdio::open`].
    pub async fn attach(asked: &Asked, owner: &Owner<'_>, master: OwnedFd) -> Result<Stdio, Error> {
        let mut stdio = Stdio::default();
        let input = stdio.open_input(&asked.stdin)?;
        let output = match Sink::parse("stdout", &asked.stdout)? {
            Sink::Logger(program) => {
                let (logger, [stdout, _]) = Logger::start(program, owner).await?;
                stdio.logger = Some(logger);
                Some(stdout)
            }
            Sink::Log(place) => {
                let (log, stdout, _) = owner.logs.open(place, false, (owner.uid, owner.gid)).await?;
                stdio.log = Some(log);
                Some(stdout)
            }
            sink => stdio.open_output(sink)?,
        };
        stdio.terminal = Some(Terminal::copy(master, input, output).doing(|| "copying a terminal".into())?);
        Ok(stdio)
    }

    /// A reading end for the process; the writing end is held.
    fn open_input(&mut self, path: &str) -> Result<Option<OwnedFd>, Error> {
        if path.is_empty() {
            return Ok(None);
        }
        if path.contains("://") {
            return Err(Error::Input(path.to_owned()));
        }
        let doing = || format!("opening the fifo {path}");
        // Neither end waits for the other when the reading one comes first and does not block.
        let reader: OwnedFd = File::options().read(true).custom_flags(nonblocking()).open(path).doing(doing)?.into();
        let writer = File::options().write(true).custom_flags(nonblocking()).open(path).doing(doing)?;
        self.input = Some(writer.into());
        blocking(&reader).doing(doing)?;
        Ok(Some(reader))
    }

    /// What the process gets to write to.
    fn output(&mut self, sink: Sink, owner: &Owner<'_>) -> Result<Option<OwnedFd>, Error> {
        let Some(mut output) = self.open_output(sink)? else { return Ok(None) };
        let found = rustix::fs::fstat(&output).doing(|| "looking at an output".into())?;
        if FileType::from_raw_mode(found.st_mode).is_fifo() {
            if owner.leaves_children {
                let (relay, end) = Relay::new(output).doing(|| "relaying an output".into())?;
                self.relays.push(relay);
                output = end;
            }
            owner.give(&output)?;
        }
        Ok(Some(output))
    }

    /// A writing end of what a client named.
    fn open_output(&mut self, sink: Sink) -> Result<Option<OwnedFd>, Error> {
        match sink {
            Sink::Null | Sink::Logger(_) | Sink::Log(_) => Ok(None),
            Sink::File(path) => Ok(Some(log_file(&path)?)),
            Sink::Path(path) => {
                let doing = || format!("opening {}", path.display());
                let is_fifo = fs::metadata(&path).is_ok_and(|found| found.file_type().is_fifo());
                if !is_fifo {
                    return Ok(Some(
                        File::options().append(true).create(true).mode(0o600).open(&path).doing(doing)?.into(),
                    ));
                }
                let reader = File::options().read(true).custom_flags(nonblocking()).open(&path).doing(doing)?;
                let writer = File::options().write(true).open(&path).doing(doing)?; // there is a reader: it does not wait
                self.held.push(reader.into());
                Ok(Some(writer.into()))
            }
        }
    }

    pub fn log(&self) -> Option<Rc<Log>> {
        self.log.clone()
    }

    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// The process is there: what it writes goes to the client from now on.
    pub fn begin(&self) {
        self.relays.iter().for_each(Relay::begin);
    }

    /// There is no process: what the runtime may have written in its place goes to nobody.
    pub async fn abandon(mut self) {
        self.relays.clear();
        self.finish().await;
    }

    /// There will be no more input from us; the process reads the end when the client has closed its end too.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// After the process has ended: waits until its output has got through, and lets go of everything.
    pub async fn finish(self) {
        if let Some(terminal) = &self.terminal {
            let _ = reactor::timeout(DRAIN, terminal.drained()).await; // what is not taken by then is given up
            terminal.stop();
        }
        let relayed = async {
            for relay in &self.relays {
                relay.drained().await;
            }
        };
        let _ = reactor::timeout(DRAIN, relayed).await; // a child of the exec may hold it; it writes to nobody from here on
        drop(self.relays);
        drop(self.input);
        drop(self.held);
        if let Some(log) = self.log {
            let _ = reactor::timeout(DRAIN, log.ended()).await; // a child of the process may still write
        }
        if let Some(logger) = self.logger {
            logger.finish().await;
        }
    }
}

/// Source: containerd's runc shim: made 0644, folders 0755.
fn log_file(path: &Path) -> Result<OwnedFd, Failed> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .doing(|| format!("making the folder {}", folder.display()))?;
    }
    let file = File::options().append(true).create(true).mode(0o644).open(path);
    Ok(file.doing(|| format!("opening {}", path.display()))?.into())
}

fn copy(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Failed> {
    fd.map(|fd| fd.try_clone().doing(|| "copying a descriptor".into())).transpose()
}

fn nonblocking() -> i32 {
    OFlags::NONBLOCK.bits().cast_signed()
}

/// The process shares the flag with us, and expects that reading waits.
fn blocking(fd: &OwnedFd) -> Result<(), rustix::io::Errno> {
    rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? - OFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::Command;

    use super::*;

    fn fifo(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }

    fn opened(asked: Asked) -> Result<(Stdio, Streams), Error> {
        reactor::run(async move {
            let children = Rc::new(Children::default());
            let logs = Logs::new("ns", "one", children.clone());
            let owner = Owner {
                namespace: "ns",
                id: "one",
                children: &children,
                logs: &logs,
                uid: 0,
                gid: 0,
                leaves_children: false,
            };
            Stdio::open(&asked, &owner).await
        })
        .unwrap()
    }

    fn run(streams: Streams, script: &str) -> std::process::Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr).spawn().unwrap()
    }

    #[test]
    fn a_process_reads_and_writes_the_client_s_fifos_and_input_ends_when_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["in", "out"] {
            fifo(&dir.path().join(name));
        }
        let asked = Asked { stdin: path("in"), stdout: path("out"), ..Asked::default() };
        let (mut stdio, streams) = opened(asked).unwrap();
        let mut process = run(streams, "cat; echo done");
        let mut output = File::open(path("out")).unwrap();
        let mut first = File::options().write(true).open(path("in")).unwrap();
        first.write_all(b"one\n").unwrap();
        drop(first); // a client that leaves does not end the input
        let mut byte = [0; 4];
        output.read_exact(&mut byte).unwrap();
        File::options().write(true).open(path("in")).unwrap().write_all(b"two\n").unwrap();
        stdio.close_input();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "two\ndone\n");
        process.wait().unwrap();
    }

    #[test]
    fn a_client_that_goes_away_does_not_end_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fifo(&out);
        let (stdio, streams) = opened(Asked { stdout: out.display().to_string(), ..Asked::default() }).unwrap();
        drop(File::options().read(true).custom_flags(nonblocking()).open(&out).unwrap());
        let mut process = run(streams, "echo kept");
        assert!(process.wait().unwrap().success());
        let mut late = File::options().read(true).custom_flags(nonblocking()).open(&out).unwrap();
        let mut text = String::new();
        late.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept\n", "the next client reads it");
        drop(stdio);
    }

    #[test]
    fn files_are_made_and_appended_to_and_one_path_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/deep/log");
        let uri = format!("file://{}", log.display());
        for _ in 0..2 {
            let asked = Asked { stdout: uri.clone(), stderr: uri.clone(), ..Asked::default() };
            let (_, streams) = opened(asked).unwrap();
            run(streams, "echo out; echo err >&2").wait().unwrap();
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\nout\nerr\n");
    }

    #[test]
    fn a_scheme_that_is_not_supported_is_refused_by_name() {
        let refused = |asked| opened(asked).err().unwrap().to_string();
        let stream = "ttrpc+unix:///run/s?streaming_id=1";
        let said = refused(Asked { stdout: stream.into(), ..Asked::default() });
        assert_eq!(said, format!("stdout: {stream}: fifos, file://, binary:// and cri:// are supported"));
        let said = refused(Asked { stdin: stream.into(), ..Asked::default() });
        assert_eq!(said, format!("stdin: {stream}: only a fifo is supported"));
        let said = refused(Asked { stdout: "/nonexistent/fifo".into(), ..Asked::default() });
        assert_eq!(said, "opening /nonexistent/fifo: no such file or directory");
    }
}
