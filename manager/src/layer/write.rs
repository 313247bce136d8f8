//! Writes an archive. The same entries give the same bytes: nothing of the time, the machine or the users' names gets in.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::entry::{Entry, Kind, time_text};
use super::header::{self, BLOCK, Block, POSIX};

pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Writer<W> {
        Writer { out }
    }

    /// Writes an entry; a file's content is read from `content` and must have the size that the entry says.
    ///
    /// # Errors
    /// The content has another size, or cannot be read or written.
    pub fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let mut path = entry.path.as_os_str().as_bytes().to_vec();
        if path.is_empty() {
            path.extend_from_slice(b"./"); // the root
        } else if entry.kind == Kind::Folder {
            path.push(b'/');
        }
        let link = entry.link.as_os_str().as_bytes();
        let (block, records) = described(entry, &path, link);
        if !records.is_empty() {
            self.records(&entry.path, &records)?;
        }
        self.out.write_all(&block)?;
        if entry.kind == Kind::File {
            let copied = io::copy(&mut content.take(entry.size), &mut self.out)?;
            if copied != entry.size {
                return Err(io::Error::other(format!("it ended after {copied} of {} bytes", entry.size)));
            }
            self.pad(entry.size)?;
        }
        Ok(())
    }

    fn records(&mut self, path: &Path, records: &[u8]) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let place = path.parent().unwrap_or(Path::new("")).join("PaxHeaders.0").join(name);
        let mut block = [0; BLOCK];
        header::put_text(&mut block, header::NAME, place.as_os_str().as_bytes());
        header::put_number(&mut block, header::SIZE, records.len() as u64);
        finish(&mut block, b'x');
        self.out.write_all(&block)?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.out.write_all(&[0; BLOCK][..usize::try_from(padding).unwrap_or(0)])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

/// An entry's block, and as records what it cannot hold.
fn described(entry: &Entry, path: &[u8], link: &[u8]) -> (Block, Vec<u8>) {
    let mut block = [0; BLOCK];
    let mut extra: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut record = |key: &str, value: &[u8]| extra.push((key.into(), value.to_vec()));
    let plain = |text: &[u8]| text.is_ascii(); // others are in the character set that records have
    if !header::put_text(&mut block, header::NAME, path) || !plain(path) {
        record("path", path);
    }
    if !header::put_text(&mut block, header::LINK, link) || !plain(link) {
        record("linkpath", link);
    }
    header::put_number(&mut block, header::MODE, entry.mode.into());
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    for (field, key, value) in
        [(header::UID, "uid", entry.uid.into()), (header::GID, "gid", entry.gid.into()), (header::SIZE, "size", size)]
    {
        if !header::put_number(&mut block, field.clone(), value) {
            header::put_number(&mut block, field, 0);
            record(key, value.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = entry.time;
    let fits = u64::try_from(seconds).is_ok_and(|seconds| header::put_number(&mut block, header::MTIME, seconds));
    if !fits || nanos != 0 {
        if !fits {
            header::put_number(&mut block, header::MTIME, 0);
        }
        record("mtime", time_text(entry.time).as_bytes());
    }
    header::put_number(&mut block, header::MAJOR, entry.device.0.into());
    header::put_number(&mut block, header::MINOR, entry.device.1.into());
    for (name, value) in &entry.attributes {
        extra.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
    }
    finish(&mut block, letter(entry.kind));
    extra.sort();
    let mut records = Vec::new();
    for (key, value) in extra {
        header::put_record(&mut records, &key, &value);
    }
    (block, records)
}

fn finish(block: &mut Block, kind: u8) {
    block[header::TYPE] = kind;
    block[header::MAGIC].copy_from_slice(POSIX);
    header::seal(block);
}

fn letter(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Link => b'1',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Folder => b'5',
        Kind::Fifo => b'6',
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive::Archive;
    use super::*;

    #[test]
    fn what_was_written_reads_back_the_same() {
        let mut plain = Entry::new("etc/passwd".into(), Kind::File);
        (plain.size, plain.mode, plain.time) = (5, 0o4755, (1_700_000_000, 0));
        let mut large = Entry::new(format!("{}/ä\n", "long".repeat(60)).into(), Kind::File);
        (large.size, large.uid, large.gid, large.time) = (5, u32::MAX - 1, 1 << 22, (-5, 250_000_000));
        large.attributes =
            vec![(b"security.capability".to_vec(), b"\n\0=\x0a".to_vec()), (b"user.a=b".to_vec(), vec![])];
        large.attributes.truncate(1); // a name with an equals sign cannot be said in a record
        let mut link = Entry::new("l".into(), Kind::Symlink);
        link.link = "../".repeat(50).into();
        let mut device = Entry::new("dev/x".into(), Kind::Char);
        device.device = (4095, 1_048_575);
        let folder = Entry::new("d".into(), Kind::Folder);
        let entries = [plain, large, link, device, folder];
        let mut writer = Writer::new(Vec::new());
        for entry in &entries {
            writer.entry(entry, &mut &b"hello"[..]).unwrap();
        }
        let bytes = writer.end().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut archive = Archive::new(bytes.as_slice());
        for entry in &entries {
            let read = archive.next().unwrap().unwrap();
            let expected = Entry { path: read.path.clone(), ..entry.clone() };
            assert_eq!(read.path.components().collect::<Vec<_>>(), entry.path.components().collect::<Vec<_>>());
            assert_eq!(read, expected);
            let mut content = Vec::new();
            archive.read_to_end(&mut content).unwrap();
            assert_eq!(content, if entry.kind == Kind::File { &b"hello"[..] } else { b"" });
        }
        assert_eq!(archive.next().unwrap(), None);
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_told() {
        let mut entry = Entry::new("f".into(), Kind::File);
        entry.size = 10;
        let error = Writer::new(Vec::new()).entry(&entry, &mut &b"short"[..]).unwrap_err();
        assert_eq!(error.to_string(), "it ended after 5 of 10 bytes");
    }
}
