//! A container's log: the one way its output takes, to a client that watches as well as to one that comes later.
//!
//! The shim hands both outputs to `tarectl logger` ([`write`]), which outlives any client; whoever shows output reads the
//! file ([`read`]) and is woken as it grows. So a slow or a dead client stops nobody, and nothing is shown that is not kept.
//!
//! ```text
//! 2026-01-02T03:04:05.000000006Z stdout F a line, which ended
//! 2026-01-02T03:04:05.000000007Z stderr P a piece of one that has not end
//! ```
//!
//! That is the kubelet's format. A piece is written as soon as it comes, or a prompt would stay unseen. All bytes but
//! newlines stand for themselves, and a newline is the end of an `F` record, so what was written comes out unchanged.
//!
//! The logger holds a lock on the file: a log that nobody has locked is complete.

pub mod read;
pub mod write;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// RFC 3339.
    pub time: &'a str,
    pub stream: Stream,
    /// It ends a line of the output.
    pub full: bool,
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a line without its newline; nothing if it is no record.
    pub fn parse(line: &'a [u8]) -> Option<Record<'a>> {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(words.next()?).ok()?;
        let stream = match words.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let full = words.next()?.starts_with(b"F"); // further tags may follow behind a colon
        Some(Record { time, stream, full, text: words.next()? })
    }

    /// Appends the records that `bytes`, as they were read from a stream, make.
    pub fn append(to: &mut Vec<u8>, time: &str, stream: Stream, bytes: &[u8]) {
        let stream = match stream {
            Stream::Stdout => " stdout ",
            Stream::Stderr => " stderr ",
        };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, tag) = line.strip_suffix(b"\n").map_or((line, "P "), |text| (text, "F "));
            for part in [time.as_bytes(), stream.as_bytes(), tag.as_bytes(), text, b"\n"] {
                to.extend_from_slice(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_out_unchanged_whatever_the_bytes() {
        let pieces: [&[u8]; 5] = [b"one\ntwo\n", b"prompt> ", b"", b"\n\n\xff\x00 P F\r\n", b"the end"];
        let mut file = Vec::new();
        for piece in pieces {
            Record::append(&mut file, "T", Stream::Stderr, piece);
        }
        let mut out = Vec::new();
        for line in file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = Record::parse(line).unwrap();
            assert_eq!((record.time, record.stream), ("T", Stream::Stderr));
            out.extend_from_slice(record.text);
            out.extend_from_slice(if record.full { b"\n" } else { b"" });
        }
        assert_eq!(out, pieces.concat());
    }

    #[test]
    fn what_is_no_record_is_not_taken_for_one() {
        for line in ["", "T", "T stdout", "T stdout F", "T stdin F x"] {
            assert_eq!(Record::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(Record::parse(b"T stdout F ").unwrap().text, b"");
    }
}
