//! `tarectl logger FILE`: the program between a container's output and its log.
//!
//! The shim starts it with the outputs as descriptors 3 and 4, waits for a byte on 5, and lets it end by itself when
//! nobody can write any more. Source: containerd core/runtime/v2/logging.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};

use super::{Record, Stream};

/// As much as a pipe holds.
const PIECE: usize = 64 << 10;

/// Copies until both outputs have ended. A container is never kept waiting: what cannot be kept is let go, and counted.
///
/// # Errors
/// This is not how a shim starts a logger.
pub fn run(path: &Path) -> io::Result<()> {
    // By their names, which needs no trust in numbers: opening one of a pipe opens the pipe.
    let mut sources =
        vec![(File::open("/proc/self/fd/3")?, Stream::Stdout), (File::open("/proc/self/fd/4")?, Stream::Stderr)];
    let mut log = Log::open(path);
    File::options().write(true).open("/proc/self/fd/5")?.write_all(b"\n")?;
    let mut piece = vec![0; PIECE];
    while !sources.is_empty() {
        let mut waiting: Vec<_> = sources.iter().map(|(source, _)| PollFd::new(source, PollFlags::IN)).collect();
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => continue,
            answer => answer?,
        };
        let ready: Vec<bool> = waiting.iter().map(|source| !source.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        sources.retain_mut(|(source, stream)| {
            if !ready.next().unwrap_or_default() {
                return true;
            }
            match source.read(&mut piece) {
                Ok(length @ 1..) => {
                    log.keep(*stream, &piece[..length]);
                    true
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
                _ => false,
            }
        });
    }
    Ok(())
}

struct Log {
    /// `None` if it cannot be opened: the container runs nevertheless.
    file: Option<File>,
    /// Up to where it holds whole records.
    length: u64,
    /// Bytes of output that could not be written since the last that could.
    lost: u64,
    records: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> Log {
        let file = File::options().create(true).append(true).mode(0o640).open(path).ok();
        // Held until we end, which tells readers that nothing more will come. An earlier run's logger, or a reader that just
        // looks, holds it for a moment.
        let file = file.inspect(|file| {
            let _ = flock(file, FlockOperation::LockExclusive); // without it, followers only end too early
        });
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
        Log { file, length, lost: 0, records: Vec::new() }
    }

    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        self.records.clear();
        if self.lost > 0 {
            let note = format!("tarectl: {} bytes of output could not be written to the log\n", self.lost);
            Record::append(&mut self.records, &now, Stream::Stderr, note.as_bytes());
        }
        Record::append(&mut self.records, &now, stream, bytes);
        if file.write_all(&self.records).is_ok() {
            self.length += self.records.len() as u64;
            self.lost = 0;
        } else {
            let _ = file.set_len(self.length); // half a record, if it stays, is one that readers pass over
            self.lost += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_disk_swallowed_is_counted_when_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path);
        let room = log.file.replace(File::options().write(true).open("/dev/full").unwrap());
        log.keep(Stream::Stdout, b"lost\n");
        log.file = room;
        log.keep(Stream::Stdout, b"kept\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(lines, ["stderr F tarectl: 5 bytes of output could not be written to the log", "stdout F kept"]);
    }
}
