//! Standard input, output and error: whose other end is outside, so that a restored container gets those of `restore`.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, StatxFlags, fstatfs, statx};

use super::Error;
use super::message::InheritFd;
use crate::error::Doing as _;

/// In the folder of the images.
const FILE: &str = "descriptors.json";
/// Source: linux/magic.h.
const PIPEFS_MAGIC: i64 = 0x5049_5045;

/// Our own three, by the names that CRIU gives them: `pipe:[INODE]`, or `file[MOUNT:INODE]` for what lies in no mount of
/// the container's. Empty for what is neither.
pub fn ours() -> Vec<String> {
    let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    stdio.iter().map(|fd| name(fd.as_fd()).unwrap_or_default()).collect()
}

/// Source: statx(2), `STATX_MNT_ID`; Linux 5.8. CRIU's criu/files-reg.c, criu/pipes.c.
fn name(fd: BorrowedFd<'_>) -> Option<String> {
    let there = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID).ok()?;
    let (mount, inode) = (there.stx_mnt_id, there.stx_ino);
    match FileType::from_raw_mode(there.stx_mode.into()) {
        FileType::Fifo if fstatfs(fd).ok()?.f_type as i64 == PIPEFS_MAGIC => Some(format!("pipe:[{inode}]")),
        FileType::CharacterDevice if rustix::termios::isatty(fd) => None, // a matter of --shell-job
        FileType::Fifo | FileType::RegularFile | FileType::CharacterDevice => {
            Some(format!("file[{mount:x}:{inode:x}]"))
        }
        _ => None,
    }
}

/// Those that CRIU has to be told of when it dumps: it finds pipes by itself.
pub fn external(names: &[String]) -> impl Iterator<Item = String> {
    let mut files: Vec<String> = names.iter().filter(|name| name.starts_with("file[")).cloned().collect();
    files.sort();
    files.dedup();
    files.into_iter()
}

/// Writes them beside the images.
///
/// # Errors
/// The disk is full, …
pub fn write(images: &Path, names: &[String]) -> Result<(), Error> {
    let path = images.join(FILE);
    let text = serde_json::to_vec(names).expect("a list of strings");
    Ok(std::fs::write(&path, text).doing(|| format!("writing {}", path.display()))?)
}

/// Those that a container was dumped with; runc's own names that are no pipes mean nothing here.
///
/// # Errors
/// There is no such file, or it is something else.
pub fn read(images: &Path) -> Result<Vec<String>, Error> {
    let path = images.join(FILE);
    let text = std::fs::read(&path).doing(|| format!("reading {}", path.display()))?;
    let names: Option<Vec<String>> = serde_json::from_slice(&text)
        .map_err(|error| Error::unfit(format!("reading {}", path.display()), error.to_string()))?;
    Ok(names.unwrap_or_default())
}

/// Ours in place of those. A file that was several of the three is given once.
pub fn inherited(names: &[String]) -> Vec<InheritFd> {
    let mut given: Vec<InheritFd> = Vec::new();
    for (fd, name) in (0..3).zip(names) {
        let outside = name.starts_with("pipe:[") || name.starts_with("file[");
        if outside && !given.iter().any(|given| given.key == *name) {
            given.push(InheritFd { key: name.clone(), fd });
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_files_have_names_and_terminals_have_none() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let inode = rustix::fs::fstat(&reader).unwrap().st_ino;
        assert_eq!(name(reader.as_fd()), Some(format!("pipe:[{inode}]")));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
        let fifo = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fifo)));
        let mount: u64 =
            said.unwrap().lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim().parse().unwrap();
        let inode = rustix::fs::fstat(&fifo).unwrap().st_ino;
        assert_eq!(name(fifo.as_fd()), Some(format!("file[{mount:x}:{inode:x}]")));
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        assert_eq!(name(master.as_fd()), None);
    }

    #[test]
    fn each_file_outside_is_given_once() {
        let names = ["file[1:2]", "pipe:[7]", "file[1:2]"].map(str::to_owned);
        assert_eq!(external(&names).collect::<Vec<_>>(), ["file[1:2]"]);
        let given: Vec<(String, i32)> = inherited(&names).into_iter().map(|given| (given.key, given.fd)).collect();
        assert_eq!(given, [("file[1:2]".to_owned(), 0), ("pipe:[7]".to_owned(), 1)]);
        assert!(inherited(&["/dev/pts/0".to_owned(), String::new()]).is_empty());
    }
}
