//! One stream of output, cut into records: `TIME STREAM TAG CONTENT`.
//!
//! The tag is `F` for a line, or its last part, and `P` for a part that another follows, or that output ended with.

use memchr::memchr;

use super::time::Text;

pub struct Lines {
    /// `stdout` or `stderr`.
    stream: &'static str,
    max_line: usize,
    /// The part of a line that has no end yet; never longer than a record may be.
    pending: Vec<u8>,
}

impl Lines {
    pub fn new(stream: &'static str, max_line: u32) -> Lines {
        Lines { stream, max_line: max_line as usize, pending: Vec::new() }
    }

    /// Appends to `out` the records that are whole by now.
    pub fn push(&mut self, mut bytes: &[u8], time: &Text, out: &mut Vec<u8>) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (mut line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if !self.pending.is_empty() || line.len() > self.max_line {
                self.keep(line, time, out);
                line = &self.pending;
            }
            record(self.stream, b'F', line.strip_suffix(b"\r").unwrap_or(line), time, out);
            self.pending.clear();
            bytes = rest;
        }
        self.keep(bytes, time, out);
        if self.pending.is_empty() {
            self.pending = Vec::new(); // one long line is not to cost memory for ever
        }
    }

    /// Appends what output ended with, if it was not the end of a line.
    pub fn finish(&mut self, time: &Text, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            record(self.stream, b'P', &std::mem::take(&mut self.pending), time, out);
        }
    }

    /// Keeps a part of a line; what is too long for one record becomes parts.
    fn keep(&mut self, mut bytes: &[u8], time: &Text, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > self.max_line {
            let (fits, rest) = bytes.split_at(self.max_line - self.pending.len());
            self.pending.extend_from_slice(fits);
            record(self.stream, b'P', &self.pending, time, out);
            self.pending.clear();
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
    }
}

fn record(stream: &str, tag: u8, content: &[u8], time: &Text, out: &mut Vec<u8>) {
    out.extend_from_slice(time);
    out.push(b' ');
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &Text = b"2026-11-24T12:00:00.000000000Z";

    /// The records without their times, of output that comes in pieces of `size`.
    fn records(output: &[u8], max_line: u32, size: usize) -> Vec<String> {
        let (mut lines, mut out) = (Lines::new("stdout", max_line), Vec::new());
        for piece in output.chunks(size) {
            lines.push(piece, TIME, &mut out);
        }
        lines.finish(TIME, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| line.strip_prefix("2026-11-24T12:00:00.000000000Z stdout ").unwrap().into()).collect()
    }

    #[test]
    fn lines_are_records_however_the_output_is_cut() {
        for (output, expected) in [
            (&b"one\ntwo\n"[..], vec!["F one", "F two"]),
            (b"\n\n", vec!["F ", "F "]),
            (b"dos\r\nlone\rcr\n", vec!["F dos", "F lone\rcr"]),
            (b"no end", vec!["P no end"]),
            (b"", vec![]),
            (b"12345678\n", vec!["F 12345678"]),
            (b"123456789\n", vec!["P 12345678", "F 9"]),
            (b"1234567812345678\n", vec!["P 12345678", "F 12345678"]),
            (b"1234567812345678123", vec!["P 12345678", "P 12345678", "P 123"]),
        ] {
            for size in 1..=output.len().max(1) {
                assert_eq!(records(output, 8, size), expected, "{output:?} in pieces of {size}");
            }
        }
    }
}
