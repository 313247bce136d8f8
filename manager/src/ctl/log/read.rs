//! Reading a log from the beginning, its last lines or its end, and following it until it is complete.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock, inotify};

use super::{Record, Stream};

/// Which part of a log is shown, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part {
    /// Only so many lines before the end.
    pub tail: Option<u64>,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    /// Each line begins with its time.
    pub timestamps: bool,
}

/// Where shown output goes.
pub trait Sink {
    /// # Errors
    /// Nobody reads it any more.
    fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()>;
}

/// Our own standard output and error.
pub struct Own;

impl Sink for Own {
    fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        use io::Write as _;
        match stream {
            Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Stream::Stderr => io::stderr().write_all(bytes),
        }
    }
}

pub struct Reader {
    file: File,
    /// Wakes us when the file grows or its writer closes it.
    changes: OwnedFd,
    /// A record of which the end is not there yet.
    half: Vec<u8>,
    part: Part,
    /// Whether the next byte of a stream begins a line.
    begins: [bool; 2],
}

impl Reader {
    /// # Errors
    /// The log cannot be opened or watched.
    pub fn open(path: &Path, part: Part) -> io::Result<Reader> {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE)?;
        let mut reader = Reader { file: File::open(path)?, changes, half: Vec::new(), part, begins: [true; 2] };
        if let Some(tail) = part.tail {
            reader.skip_to_last(tail)?;
        }
        Ok(reader)
    }

    /// Shows what is there.
    ///
    /// # Errors
    /// The log cannot be read, or nobody wants to see it.
    pub fn show(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let mut piece = vec![0; 64 << 10];
        let mut shown = [Vec::new(), Vec::new()];
        loop {
            let length = self.file.read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            let mut last = None;
            for part in piece[..length].split_inclusive(|byte| *byte == b'\n') {
                self.half.extend_from_slice(part);
                if self.half.pop_if(|byte| *byte == b'\n').is_none() {
                    continue;
                }
                let half = std::mem::take(&mut self.half);
                if let Some(record) = Record::parse(&half).filter(|record| self.part.takes(record)) {
                    // In the order in which it was written, as far as two streams have one.
                    if let Some(other) = last.filter(|other| *other != record.stream) {
                        sink.take(other, &shown[other as usize])?;
                        shown[other as usize].clear();
                    }
                    last = Some(record.stream);
                    let (to, begins) = (&mut shown[record.stream as usize], &mut self.begins[record.stream as usize]);
                    if self.part.timestamps && *begins {
                        to.extend_from_slice(record.time.as_bytes());
                        to.push(b' ');
                    }
                    to.extend_from_slice(record.text);
                    if record.full {
                        to.push(b'\n');
                    }
                    *begins = record.full;
                }
                self.half = half;
                self.half.clear();
            }
            if let Some(stream) = last {
                sink.take(stream, &shown[stream as usize])?;
                shown[stream as usize].clear();
            }
        }
    }

    /// Shows what is there and what comes, until the log is complete.
    ///
    /// # Errors
    /// As [`Reader::show`].
    pub fn follow(mut self, sink: &mut impl Sink) -> io::Result<()> {
        loop {
            // Asked before reading: what comes after the last look at a complete log is nothing.
            let complete = self.is_complete();
            self.show(sink)?;
            if complete {
                return Ok(());
            }
            let mut events = [0; 4096];
            match rustix::io::read(&self.changes, &mut events) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn is_complete(&self) -> bool {
        let free = flock(&self.file, FlockOperation::NonBlockingLockShared).is_ok();
        if free {
            let _ = flock(&self.file, FlockOperation::Unlock); // or a logger that starts now would find it taken
        }
        free
    }

    fn skip_to_last(&mut self, lines: u64) -> io::Result<()> {
        let (mut ends, mut at, mut line) = (std::collections::VecDeque::from([0]), 0, Vec::new());
        let mut reader = BufReader::new(&self.file);
        let keep = usize::try_from(lines).unwrap_or(usize::MAX).saturating_add(1);
        let mut open = false; // a line that has not ended counts as one
        while reader.read_until(b'\n', &mut line)? > 0 {
            at += line.len() as u64;
            if let Some(record) = line.strip_suffix(b"\n").and_then(Record::parse) {
                if record.full {
                    ends.push_back(at);
                }
                open = !record.full;
            }
            if ends.len() > keep {
                ends.pop_front();
            }
            line.clear();
        }
        if open && ends.len() == keep && lines > 0 {
            ends.pop_front();
        }
        let begin = if lines == 0 { at } else { ends.front().copied().unwrap_or_default() };
        self.file.seek(SeekFrom::Start(begin))?;
        Ok(())
    }
}

impl Part {
    fn takes(&self, record: &Record<'_>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = humantime::parse_rfc3339(record.time) else { return false };
        self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(String);

    impl Sink for Kept {
        fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
            if stream == Stream::Stderr {
                self.0.push('!');
            }
            self.0.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(())
        }
    }

    fn log(pieces: &[(&str, Stream, &str)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = Vec::new();
        for (time, stream, text) in pieces {
            Record::append(&mut file, time, *stream, text.as_bytes());
        }
        std::fs::write(&path, file).unwrap();
        (dir, path)
    }

    fn shown(path: &Path, part: Part) -> String {
        let mut kept = Kept::default();
        Reader::open(path, part).unwrap().show(&mut kept).unwrap();
        kept.0
    }

    #[test]
    fn parts_of_a_log_are_shown_by_lines_and_by_time() {
        const EARLY: &str = "2026-01-01T00:00:00Z";
        const LATE: &str = "2026-01-02T00:00:00Z";
        let (_dir, path) = log(&[
            (EARLY, Stream::Stdout, "one\ntwo"),
            (EARLY, Stream::Stdout, " and more\n"),
            (LATE, Stream::Stderr, "err\n"),
            (LATE, Stream::Stdout, "last"),
        ]);
        let tail = |lines| shown(&path, Part { tail: Some(lines), ..Part::default() });
        assert_eq!(shown(&path, Part::default()), "one\ntwo and more\n!err\nlast");
        assert_eq!((tail(0).as_str(), tail(1).as_str(), tail(2).as_str()), ("", "last", "!err\nlast"));
        assert_eq!(tail(3), "two and more\n!err\nlast");
        assert_eq!(tail(99), "one\ntwo and more\n!err\nlast");
        let noon = humantime::parse_rfc3339("2026-01-01T12:00:00Z").ok();
        assert_eq!(shown(&path, Part { since: noon, ..Part::default() }), "!err\nlast");
        assert_eq!(shown(&path, Part { until: noon, ..Part::default() }), "one\ntwo and more\n");
        let stamped = shown(&path, Part { timestamps: true, until: noon, ..Part::default() });
        assert_eq!(stamped, format!("{EARLY} one\n{EARLY} two and more\n"));
    }

    #[test]
    fn a_follower_sees_all_that_comes_and_ends_when_the_writer_does() {
        use io::Write as _;
        let (_dir, path) = log(&[]);
        let mut writer = File::options().append(true).open(&path).unwrap();
        flock(&writer, FlockOperation::LockExclusive).unwrap();
        let reader = Reader::open(&path, Part::default()).unwrap();
        let following = std::thread::spawn(move || {
            let mut kept = Kept::default();
            reader.follow(&mut kept).unwrap();
            kept.0
        });
        let mut records = Vec::new();
        for number in 0..1000 {
            records.clear();
            Record::append(&mut records, "T", Stream::Stdout, format!("{number}\n").as_bytes());
            let (first, second) = records.split_at(7);
            writer.write_all(first).unwrap(); // as one who reads at this moment may find it
            writer.write_all(second).unwrap();
        }
        drop(writer);
        let expected: String = (0..1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(following.join().unwrap(), expected);
    }
}
