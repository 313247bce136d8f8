//! What goes wrong, as the caller wants to read it: text or JSON, one line each, on standard error or in a file.
//!
//! containerd's shim reads the last line of level `error` from the file; podman wants exactly one JSON object.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::SystemTime;

/// Where lines go, and how they look. The default is text on standard error.
#[derive(Debug, Clone, Default)]
pub struct Log {
    file: Option<Arc<File>>,
    json: bool,
    debug: bool,
}

/// A letter as it is; a control character, but for the end of a line, as Rust would write it.
fn shown(letter: char) -> Vec<char> {
    if letter.is_control() && letter != '\n' { letter.escape_default().collect() } else { vec![letter] }
}

impl Log {
    /// Opens the log as the flags say; what is wrong with them is told beside, so that it can still be logged.
    pub fn open(path: Option<&str>, format: Option<&str>, debug: bool) -> (Log, Result<(), String>) {
        let json = match format {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => return (Log::default(), Err(format!("invalid log-format: {other:?}"))),
        };
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            return (Log { file: None, json, debug }, Ok(()));
        };
        let append = libc::O_SYNC | libc::O_CLOEXEC;
        match File::options().append(true).create(true).mode(0o644).custom_flags(append).open(path) {
            Ok(file) => (Log { file: Some(Arc::new(file)), json, debug }, Ok(())),
            Err(error) => (Log::default(), Err(format!("opening the log file {path}: {error}"))),
        }
    }

    /// A line of level `error`; with a log file the bare text goes to standard error too, for whoever sits there.
    pub fn error(&self, message: &str) {
        self.line("error", message);
        if self.file.is_some() {
            // As a terminal may be shown it: what a container or a bundle has put into it moves no cursor.
            let shown: String = message.chars().flat_map(shown).collect();
            eprintln!("{shown}");
        }
    }

    /// The same for what has been said on standard error already.
    pub fn error_told(&self, message: &str) {
        if self.file.is_some() {
            self.line("error", message);
        }
    }

    pub fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    pub fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    fn line(&self, level: &str, message: &str) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let line = if self.json {
            let quoted = serde_json::Value::from(message);
            format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
        } else {
            format!("time=\"{time}\" level={level} msg={message:?}\n")
        };
        // A log that cannot be written is not a reason to fail; the exit code still tells.
        let _ = match &self.file {
            Some(file) => (&mut &**file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}
