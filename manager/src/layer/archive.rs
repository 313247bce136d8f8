//! An archive's entries, one after the other. What two readers could read in two ways is refused (CVE-2025-62518 and its kin).
//!
//! Known are the formats that layers come in: ustar with pax records, GNU's with its long names and old sparse files, and
//! the headers of Version 7.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::LONGEST_HEADER;
use super::entry::{Entry, Kind, allowed, refused, time_of};
use super::header::{self, BLOCK, Block, GNU, POSIX};
use crate::error::{Doing as _, Error, Result};

const DOING: &str = "reading the archive";

pub struct Archive<R> {
    stream: R,
    /// Of the entry's content.
    left: u64,
    /// After it.
    padding: u64,
}

/// What extra entries say of the one that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl Extensions {
    fn any(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.records.is_some()
    }
}

fn malformed<T>(why: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("{DOING}: {why}")))
}

impl<R: Read> Archive<R> {
    pub fn new(stream: R) -> Archive<R> {
        Archive { stream, left: 0, padding: 0 }
    }

    /// What follows the archive is still in it.
    pub fn into_inner(self) -> R {
        self.stream
    }

    /// The next entry; its content is then to be read from `self`. What was left of the last one is passed over.
    ///
    /// # Errors
    /// The archive is malformed, ends in the middle, or can be read in two ways.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut before = Extensions::default();
        loop {
            self.pass_over(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.header()? else {
                if before.any() {
                    return malformed("it ends where an entry was announced");
                }
                return Ok(None);
            };
            let Some(size) = header::number(&block[header::SIZE]).and_then(|size| u64::try_from(size).ok()) else {
                return malformed("a size is not a number");
            };
            let again = match block[header::TYPE] {
                b'L' => before.path.replace(self.long_name(size)?).is_some(),
                b'K' => before.link.replace(self.long_name(size)?).is_some(),
                b'x' => {
                    let bytes = self.description(size)?;
                    let Some(records) = header::records(&bytes) else { return malformed("a pax record is malformed") };
                    before.records.replace(records).is_some()
                }
                b'g' => {
                    self.description(size)?; // a comment: nothing that describes files may come this way
                    false
                }
                _ => return self.entry(&block, size, before).map(Some),
            };
            if again {
                return malformed("an entry is described twice");
            }
        }
    }

    /// A block that is not the end.
    fn header(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
            match self.stream.read(&mut block[length..]) {
                Ok(0) if length == 0 => return Ok(None), // without the blocks that should end it, as some write
                Ok(0) => return malformed("it ends within a header"),
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(DOING, &error)),
            }
        }
        if block != [0; BLOCK] {
            return if header::checks(&block) { Ok(Some(block)) } else { malformed("a header's sum is wrong") };
        }
        let mut second = [0; BLOCK];
        self.stream.read_exact(&mut second).doing(|| DOING.into())?;
        if second != [0; BLOCK] {
            return malformed("an empty block, and then more"); // some readers end here and some go on
        }
        Ok(None)
    }

    fn pass_over(&mut self, length: u64) -> Result<()> {
        let passed = io::copy(&mut (&mut self.stream).take(length), &mut io::sink()).doing(|| DOING.into())?;
        if passed < length { malformed("it ends within an entry") } else { Ok(()) }
    }

    /// What describes an entry, as a whole. It is held in memory: a header's claim alone must not fill it.
    fn description(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > LONGEST_HEADER {
            return malformed("an entry's header is too long");
        }
        let mut bytes = Vec::new();
        (&mut self.stream).take(size).read_to_end(&mut bytes).doing(|| DOING.into())?;
        if (bytes.len() as u64) < size {
            return malformed("it ends within a header");
        }
        self.pass_over(padding(size))?;
        Ok(bytes)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        Ok(header::text(&self.description(size)?).to_vec())
    }

    fn entry(&mut self, block: &Block, size: u64, before: Extensions) -> Result<Entry> {
        let mut path = match (block[header::PREFIX][0], &block[header::MAGIC]) {
            (1.., magic) if magic == POSIX => {
                [header::text(&block[header::PREFIX]), b"/", header::text(&block[header::NAME])].concat()
            }
            _ => header::text(&block[header::NAME]).to_vec(),
        };
        let mut link = header::text(&block[header::LINK]).to_vec();
        let records = Records::of(before.records.unwrap_or_default())?;
        for (place, long, short) in [(&mut path, before.path, &records.path), (&mut link, before.link, &records.link)] {
            match (long, short) {
                (Some(_), Some(_)) => return malformed("an entry has two long names"),
                (Some(name), None) => *place = name,
                (None, Some(name)) => place.clone_from(name),
                (None, None) => {}
            }
        }
        let folder = path.ends_with(b"/");
        let path = PathBuf::from(OsString::from_vec(path));
        let kind = match (block[header::TYPE], folder) {
            (b'0' | b'7' | b'S', true) => return refused(&path, "a file whose name ends as a folder's does"),
            (b'0' | b'7' | b'S' | 0, false) => Kind::File,
            (b'5', _) | (0, true) => Kind::Folder, // Version 7 knew folders by the slash
            (b'1', _) => Kind::Link,
            (b'2', _) => Kind::Symlink,
            (b'3', _) => Kind::Char,
            (b'4', _) => Kind::Block,
            (b'6', _) => Kind::Fifo,
            (other, _) => {
                return refused(&path, &format!("entries of type {:?} are not supported", char::from(other)));
            }
        };
        let number = |field, what: &str| match header::number(&block[field]) {
            Some(number) => Ok(number),
            None => refused(&path, &format!("its {what} is not a number")),
        };
        let (uid, gid) = (number(header::UID, "owner")?, number(header::GID, "group")?);
        let owner = |id: i64| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id), // chown(2): leave it as it is
            _ => refused(&path, "its owner is not a user or group id"),
        };
        let device = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let mut entry = Entry::new(path.clone(), kind);
        entry.link = PathBuf::from(OsString::from_vec(link));
        (entry.uid, entry.gid) = (owner(records.uid.unwrap_or(uid))?, owner(records.gid.unwrap_or(gid))?);
        entry.mode = (number(header::MODE, "mode")? & 0o7777) as u32;
        entry.time = records.time.unwrap_or((number(header::MTIME, "time")?, 0));
        if matches!(kind, Kind::Char | Kind::Block) {
            entry.device = (device(number(header::MAJOR, "device")?), device(number(header::MINOR, "device")?));
        }
        entry.attributes = records.attributes;
        let size = match kind {
            Kind::Link => 0, // some writers give the size of what it leads to, and no reader believes it
            _ => records.size.unwrap_or(size),
        };
        if size > 0 && kind != Kind::File {
            return refused(&path, "only a file has content");
        }
        entry.size = size;
        if block[header::TYPE] == b'S' {
            if &block[header::MAGIC] != GNU {
                return refused(&path, "a sparse file in a format that knows none");
            }
            let (real, parts) = self.sparse(block, &path, size)?;
            (entry.size, entry.parts) = (real, Some(parts));
        }
        (self.left, self.padding) = (size, padding(size));
        Ok(entry)
    }

    /// A sparse file's real size, and which parts of it follow. Source: tar(5), "GNU tar Archives".
    fn sparse(&mut self, block: &Block, path: &std::path::Path, stored: u64) -> Result<(u64, Vec<(u64, u64)>)> {
        let number = |field: &[u8]| header::number(field).and_then(|number| u64::try_from(number).ok());
        let Some(real) = number(&block[483..495]) else { return refused(path, "its real size is not a number") };
        let mut parts = Vec::new();
        let (mut map, mut more) = (block[386..482].to_vec(), block[482] != 0);
        loop {
            for pair in map.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                let (Some(offset), Some(length)) = (number(&pair[..12]), number(&pair[12..])) else {
                    return refused(path, "its map of holes is malformed");
                };
                parts.push((offset, length));
            }
            if !more {
                break;
            }
            if (parts.len() * 24) as u64 > LONGEST_HEADER {
                return malformed("an entry's header is too long");
            }
            let mut next = [0; BLOCK];
            self.stream.read_exact(&mut next).doing(|| DOING.into())?;
            (map, more) = (next[..504].to_vec(), next[504] != 0);
        }
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &parts {
            let ordered = *offset >= end;
            (end, sum) = (offset.saturating_add(*length), sum.saturating_add(*length));
            if !ordered || end > real {
                return refused(path, "its map of holes is malformed");
            }
        }
        if sum != stored {
            return refused(path, "its map of holes is malformed");
        }
        Ok((real, parts))
    }
}

/// The current entry's content, as far as the archive has it.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.stream.read(&mut buffer[..length])?;
        self.left -= length as u64;
        Ok(length)
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// What pax records say, as far as it concerns us.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<i64>,
    gid: Option<i64>,
    time: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    fn of(list: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Records> {
        let mut records = Records::default();
        let mut seen = HashSet::new();
        let named = list.iter().find(|(key, _)| key == b"path").map(|(_, value)| value.clone()).unwrap_or_default();
        let path = PathBuf::from(OsString::from_vec(named));
        for (key, value) in list {
            if !seen.insert(key.clone()) {
                return refused(&path, &format!("it says {} twice", String::from_utf8_lossy(&key)));
            }
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if allowed(name) {
                    records.attributes.push((name.to_vec(), value));
                }
                continue;
            }
            if key.starts_with(b"GNU.sparse.") {
                return refused(&path, "sparse files in pax form are not supported");
            }
            if value.is_empty() {
                continue; // takes back what a global record said, of which none counts
            }
            let number = || std::str::from_utf8(&value).ok().and_then(|text| text.parse::<i64>().ok());
            let wrong = |what: &str| refused(&path, what);
            match key.as_slice() {
                b"path" | b"linkpath" if value.contains(&0) => return wrong("its name holds a NUL"),
                b"path" => records.path = Some(value),
                b"linkpath" => records.link = Some(value),
                b"size" => match number().and_then(|size| u64::try_from(size).ok()) {
                    Some(size) => records.size = Some(size),
                    None => return wrong("its size is not a number"),
                },
                b"uid" | b"gid" => {
                    let Some(id) = number() else { return wrong("its owner is not a user or group id") };
                    *(if key == b"uid" { &mut records.uid } else { &mut records.gid }) = Some(id);
                }
                b"mtime" => match time_of(&value) {
                    Some(time) => records.time = Some(time),
                    None => return wrong("its mtime is not a time"),
                },
                _ => {}
            }
        }
        records.attributes.sort();
        Ok(records)
    }
}
