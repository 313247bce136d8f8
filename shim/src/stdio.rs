//! Standard input, output and error of a process.
//!
//! A fifo made by the client is handed to the process itself: no byte of it passes through us. We hold both ends of each
//! output for as long as the process lives, so that a reader that goes away neither ends nor stops it; and the writing end
//! of the input, until the client says that there will be no more.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio as Given};

use rustix::fs::OFlags;

use crate::{Doing as _, Error};

/// What the client asked for, and what is open for it.
#[derive(Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
    /// Both ends of the outputs.
    held: Vec<OwnedFd>,
    /// The writing end of the input, until CloseIO.
    input: Option<OwnedFd>,
    logger: Option<Child>,
}

/// What a process is started with.
pub struct Ends {
    pub stdin: Given,
    pub stdout: Given,
    pub stderr: Given,
}

impl Stdio {
    pub fn new(stdin: String, stdout: String, stderr: String, terminal: bool) -> Stdio {
        Stdio { stdin, stdout, stderr, terminal, ..Stdio::default() }
    }

    /// Opens what a process without a terminal gets.
    ///
    /// # Errors
    /// A path cannot be opened, or a scheme is not known.
    pub fn open(&mut self, id: &str, namespace: &str) -> Result<Ends, Error> {
        let stdin = if self.stdin.is_empty() { Given::null() } else { self.open_input()? };
        if self.stdout.starts_with("binary://") {
            let (stdout, stderr) = self.start_logger(id, namespace)?;
            return Ok(Ends { stdin, stdout, stderr });
        }
        let stdout = self.open_output(&self.stdout.clone())?;
        let stderr = self.open_output(&self.stderr.clone())?;
        Ok(Ends { stdin, stdout, stderr })
    }

    /// For a fifo: a reading end, and the writing end that keeps it from ending before the client has come.
    fn open_input(&mut self) -> Result<Given, Error> {
        let path = self.stdin.clone();
        let open = |options: &mut OpenOptions| options.open(&path).doing(|| format!("opening {path}"));
        let both = open(File::options().read(true).write(true))?; // neither end waits while this is open
        let reader = open(File::options().read(true))?;
        self.input = Some(open(File::options().write(true))?.into());
        drop(both);
        Ok(Given::from(reader))
    }

    fn open_output(&mut self, path: &str) -> Result<Given, Error> {
        if path.is_empty() {
            return Ok(Given::null());
        }
        if let Some(file) = path.strip_prefix("file://") {
            return Ok(Given::from(log_file(Path::new(file))?));
        }
        if path.contains("://") {
            return Err(Error::new(format!("{path}: fifos, file:// and binary:// are supported")));
        }
        let opened = open_fifo(path)?;
        if let Some(held) = opened.1 {
            self.held.push(held.into());
        }
        Ok(Given::from(opened.0))
    }

    /// The far side of a terminal's output: a fifo that is held, or a file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_terminal_output(&mut self) -> Result<Option<OwnedFd>, Error> {
        if self.stdout.is_empty() {
            return Ok(None);
        }
        if let Some(file) = self.stdout.strip_prefix("file://") {
            return Ok(Some(log_file(Path::new(file))?.into()));
        }
        let both = File::options().read(true).write(true).custom_flags(nonblocking()).open(&self.stdout);
        Ok(Some(both.doing(|| format!("opening {}", self.stdout))?.into()))
    }

    /// The far side of a terminal's input.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_terminal_input(&mut self) -> Result<Option<OwnedFd>, Error> {
        if self.stdin.is_empty() {
            return Ok(None);
        }
        let path = self.stdin.clone();
        let both = File::options()
            .read(true)
            .write(true)
            .custom_flags(nonblocking())
            .open(&path)
            .doing(|| format!("opening {path}"))?;
        let reader =
            File::options().read(true).custom_flags(nonblocking()).open(&path).doing(|| format!("opening {path}"))?;
        self.input = Some(both.into());
        Ok(Some(reader.into()))
    }

    /// A program that takes the output: `binary:///path/to/program?key=value`.
    ///
    /// It gets the output as descriptor 3, errors as 4, and says by closing 5 that it is ready. It outlives neither the
    /// container's output nor us. Its environment is the container's id and namespace and nothing else.
    fn start_logger(&mut self, id: &str, namespace: &str) -> Result<(Given, Given), Error> {
        let uri = self.stdout.strip_prefix("binary://").unwrap_or_default();
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let pipe = || std::io::pipe().doing(|| format!("making a pipe to {path}"));
        let ((out_reader, out_writer), (err_reader, err_writer), (ready_reader, ready_writer)) =
            (pipe()?, pipe()?, pipe()?);
        // The shell puts the three descriptors where the program expects them; std can place only 0, 1 and 2.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4<&1 5>&2 0</dev/null 1>/dev/null 2>/dev/null", path]);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            command.args([decoded(key), decoded(value)]);
        }
        command.env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Given::from(out_reader)).stdout(Given::from(err_reader)).stderr(Given::from(ready_writer));
        self.logger = Some(command.spawn().doing(|| format!("starting the logger {path}"))?);
        drop(command);
        let mut byte = [0];
        std::io::Read::read(&mut { ready_reader }, &mut byte).doing(|| format!("waiting for the logger {path}"))?;
        Ok((Given::from(out_writer), Given::from(err_writer)))
    }

    /// There will be no more input from us; when the client closes its end too, the process reads the end of file.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The process has ended: let go of everything, so that readers see the end.
    pub fn close(&mut self) {
        self.input = None;
        self.held.clear();
    }
}

fn nonblocking() -> i32 {
    OFlags::NONBLOCK.bits().cast_signed()
}

/// A writing end for the process, and both ends for us if it is a fifo. Opening never waits.
fn open_fifo(path: &str) -> Result<(File, Option<File>), Error> {
    let doing = || format!("opening {path}");
    let is_fifo = fs::metadata(path).is_ok_and(|there| std::os::unix::fs::FileTypeExt::is_fifo(&there.file_type()));
    if !is_fifo {
        return Ok((File::options().append(true).create(true).mode(0o600).open(path).doing(doing)?, None));
    }
    let both = File::options().read(true).write(true).custom_flags(nonblocking()).open(path).doing(doing)?;
    let writer = File::options().write(true).open(path).doing(doing)?;
    Ok((writer, Some(both)))
}

fn log_file(path: &Path) -> Result<File, Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
    }
    File::options().append(true).create(true).mode(0o644).open(path).doing(|| format!("opening {}", path.display()))
}

/// Percent-decoding; what is not an escape stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'%').then(|| after.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
