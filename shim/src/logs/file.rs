//! The file of a log: whole records or nothing, and a full disk costs lines, not the container.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use memchr::memchr_iter;

use crate::log;

pub struct LogFile {
    path: PathBuf,
    /// None: nothing is kept.
    file: Option<File>,
    /// Records that could not be written since the last that could.
    lost: usize,
}

impl LogFile {
    /// Opens it to append to, or makes it; with an empty path nothing is kept.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let file = if path.as_os_str().is_empty() { None } else { Some(open(path)?) };
        Ok(LogFile { path: path.to_owned(), file, lost: 0 })
    }

    /// From here on, to the file that has its name now.
    ///
    /// # Errors
    /// It cannot be opened; then the one that was open stays.
    pub fn reopen(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            self.file = Some(open(&self.path)?);
        }
        Ok(())
    }

    /// Appends records. What does not fit is dropped and counted: the container must not wait for a disk to be emptied.
    pub fn append(&mut self, records: &[u8]) {
        let Some(file) = self.file.as_mut().filter(|_| !records.is_empty()) else { return };
        let written = write(file, records);
        if written == records.len() {
            if self.lost > 0 {
                log::warn(&format!("{} records of the log {} were lost", self.lost, self.path.display()));
                self.lost = 0;
            }
            return;
        }
        // A record that was cut would spoil the next one's line: back to the end of the last whole one.
        let whole = records[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if written > whole
            && let Ok(length) = file.metadata().map(|found| found.len())
        {
            let _ = file.set_len(length - (written - whole) as u64); // else that one line stays spoilt
        }
        self.lost += memchr_iter(b'\n', &records[whole..]).count();
    }
}

/// As the kubelet expects it: readable for the group.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// How much could be written.
fn write(file: &mut File, records: &[u8]) -> usize {
    let mut written = 0;
    while written < records.len() {
        match file.write(&records[written..]) {
            Ok(0) => break,
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    use std::fs;

    #[test]
    fn a_full_disk_costs_whole_records_and_the_log_goes_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), c"size=16k").unwrap();
        let (path, filler) = (dir.path().join("log"), dir.path().join("filler"));
        fs::write(&filler, [0; 8192]).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        let record = [b"x".repeat(99), b"\n".to_vec()].concat();
        log.append(&record.repeat(200));
        assert!(log.lost > 0);
        let kept = fs::read(&path).unwrap();
        assert!(!kept.is_empty() && kept.len().is_multiple_of(record.len()), "{}", kept.len());
        fs::remove_file(&filler).unwrap();
        log.append(b"after\n");
        assert_eq!(log.lost, 0);
        assert!(fs::read(&path).unwrap().ends_with(b"x\nafter\n"));
        drop(log);
        unmount(dir.path(), UnmountFlags::empty()).unwrap();
    }

    #[test]
    fn a_renamed_file_keeps_what_it_has_and_the_new_one_gets_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"one\n");
        fs::rename(&path, &old).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(fs::read(&old).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::read(&path).unwrap(), b"three\n");
    }
}
