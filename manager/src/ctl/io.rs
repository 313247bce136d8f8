//! The input and output of one more process in a container: fifos in a folder of our own, copied by threads.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::log::Stream;
use super::log::read::{Own, Sink as _};

/// Fifos of one process. The folder goes when this is dropped.
pub struct Fifos {
    folder: PathBuf,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// Reading ends, open before anyone writes: a process may be over before a thread of ours runs.
    readers: Vec<(File, Stream)>,
    outputs: Vec<JoinHandle<()>>,
}

impl Fifos {
    /// Makes the fifos: input if asked for, and errors apart unless there is a terminal.
    ///
    /// # Errors
    /// The temporary folder cannot be written.
    pub fn make(input: bool, terminal: bool) -> Result<Fifos> {
        let mut unique = [0; 8];
        rustix::rand::getrandom(&mut unique, rustix::rand::GetRandomFlags::empty()).context("getting a random name")?;
        let folder = std::env::temp_dir().join(format!("tarectl-{:016x}", u64::from_ne_bytes(unique)));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let (stdin, stdout, stderr) = (String::new(), String::new(), String::new());
        let (readers, outputs) = (Vec::new(), Vec::new());
        let mut fifos = Fifos { folder: folder.clone(), stdin, stdout, stderr, readers, outputs };
        let make = |name: &str| -> Result<String> {
            let path = folder.join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .with_context(|| format!("making {}", path.display()))?;
            Ok(path.to_string_lossy().into_owned())
        };
        if input {
            fifos.stdin = make("stdin")?;
        }
        fifos.stdout = make("stdout")?;
        fifos.readers.push((open(&fifos.stdout)?, Stream::Stdout));
        if !terminal {
            fifos.stderr = make("stderr")?;
            fifos.readers.push((open(&fifos.stderr)?, Stream::Stderr));
        }
        Ok(fifos)
    }

    /// Begins to copy.
    pub fn copy(&mut self) {
        for (reader, stream) in self.readers.drain(..) {
            self.outputs.push(std::thread::spawn(move || copy_out(reader, stream)));
        }
    }

    /// Waits until all output is copied.
    pub fn finish(&mut self) {
        for output in self.outputs.drain(..) {
            let _ = output.join(); // a thread that panicked has nothing more to copy
        }
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // the next start of the machine clears what cannot be removed
    }
}

fn open(path: &str) -> Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    File::options().read(true).custom_flags(flags).open(path).with_context(|| format!("opening {path}"))
}

/// Copies until the last writer has gone. Before the first has come there is nothing to read, and no end either.
fn copy_out(mut reader: File, stream: Stream) {
    let mut buffer = [0; 32 << 10];
    loop {
        if let Err(errno) = poll(&mut [PollFd::new(&reader, PollFlags::IN)], None)
            && errno != rustix::io::Errno::INTR
        {
            return;
        }
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if Own.take(stream, &buffer[..length]).is_err() => return,
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            _ => {}
        }
    }
}
