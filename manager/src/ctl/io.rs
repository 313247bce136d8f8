//! A process's input and output on this side: fifos in a folder of our own, copied by threads.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Fifos of one process. The folder goes when this is dropped.
pub struct Fifos {
    folder: PathBuf,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    outputs: Vec<JoinHandle<()>>,
}

impl Fifos {
    /// Makes the fifos: input if asked for, and errors apart unless there is a terminal.
    ///
    /// # Errors
    /// The temporary folder cannot be written.
    pub fn make(input: bool, terminal: bool) -> Result<Fifos> {
        let unique =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let folder = std::env::temp_dir().join(format!("tarectl-{}-{unique}", std::process::id()));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let (stdin, stdout, stderr) = (String::new(), String::new(), String::new());
        let mut fifos = Fifos { folder: folder.clone(), stdin, stdout, stderr, outputs: Vec::new() };
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
        if !terminal {
            fifos.stderr = make("stderr")?;
        }
        Ok(fifos)
    }

    /// Begins to copy. Each thread waits until the other side has opened its fifo.
    pub fn copy(&mut self) {
        let stdout = self.stdout.clone();
        self.outputs.push(std::thread::spawn(move || copy_out(&stdout, &mut std::io::stdout())));
        if !self.stderr.is_empty() {
            let stderr = self.stderr.clone();
            self.outputs.push(std::thread::spawn(move || copy_out(&stderr, &mut std::io::stderr())));
        }
    }

    /// Begins to copy our input; `ended` is called when there is no more.
    pub fn copy_input(&self, ended: impl FnOnce() + Send + 'static) {
        let stdin = self.stdin.clone();
        // Not waited for: it may sit in a read that never returns.
        std::thread::spawn(move || {
            if let Ok(mut fifo) = File::options().write(true).open(stdin) {
                let mut buffer = [0; 8192];
                while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
                    if fifo.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            }
            ended();
        });
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

fn copy_out(path: &str, to: &mut impl std::io::Write) {
    let Ok(mut fifo) = File::open(path) else { return };
    let mut buffer = [0; 32 << 10];
    while let Ok(length @ 1..) = fifo.read(&mut buffer) {
        if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}

/// Our terminal in raw mode; as it was when this is dropped.
pub struct Raw(Option<Termios>);

impl Raw {
    /// # Errors
    /// Standard input is a terminal and cannot be set.
    pub fn begin() -> Result<Raw> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return Ok(Raw(None));
        }
        let before = tcgetattr(stdin).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).context("making the terminal raw")?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before); // nobody is left to tell
        }
    }
}

/// Columns and rows of our terminal, if there is one.
pub fn window() -> Option<(u32, u32)> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some((u32::from(size.ws_col), u32::from(size.ws_row)))
}
