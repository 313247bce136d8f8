//! Making what a path leads to and is not there: folders on the way, and a folder or a file at its end.
//!
//! A link to nowhere is followed too: what it points to is made, inside the root, as a container's own `mkdir -p` would
//! have it. Nothing is allocated: the path lies in a buffer on the stack, and a link's text is spliced into it.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, readlinkat_raw};
use rustix::io::Errno;

use super::root::{Missing, open};

/// As many links as the kernel follows in one path: path_resolution(7).
const MOST_LINKS: usize = 40;

/// Makes all of `path` that is missing below `root`, and opens its end.
///
/// # Errors
/// `ELOOP` too many links · `ENAMETOOLONG` · those of mkdir(2) and mknod(2).
#[inline(never)] // its buffers would become its callers' stack, which has to be paged in
pub fn path(root: BorrowedFd<'_>, path: &CStr, last: Missing) -> Result<OwnedFd, Errno> {
    let mut walk = Walk::new(path.to_bytes())?;
    for _ in 0..MOST_LINKS {
        match walk.make(root, last)? {
            End::Reached(handle) => return Ok(handle),
            End::LinkToNowhere => {}
        }
    }
    Err(Errno::LOOP)
}

/// Makes `name` in a folder.
///
/// # Errors
/// `EEXIST` · those of mkdir(2) and mknod(2).
pub fn one(folder: BorrowedFd<'_>, name: &CStr, what: Missing) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o755);
    match what {
        Missing::Folder => mkdirat(folder, name, mode),
        Missing::File => mknodat(folder, name, FileType::RegularFile, mode, 0),
        Missing::Refused => Err(Errno::NOENT),
    }
}

enum End {
    Reached(OwnedFd),
    /// The path is another one now.
    LinkToNowhere,
}

/// A path that changes when a link is met.
struct Walk {
    text: [u8; Walk::LONGEST],
    length: usize,
}

impl Walk {
    const LONGEST: usize = libc::PATH_MAX as usize;

    fn new(path: &[u8]) -> Result<Walk, Errno> {
        let mut walk = Walk { text: [0; Walk::LONGEST], length: 0 };
        walk.append(path)?;
        Ok(walk)
    }

    /// Always leaves room for the zero byte at the end.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.length + bytes.len();
        if end >= Walk::LONGEST {
            return Err(Errno::NAMETOOLONG);
        }
        self.text[self.length..end].copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    fn make(&mut self, root: BorrowedFd<'_>, last: Missing) -> Result<End, Errno> {
        let mut parent = open(root, c".", OFlags::PATH | OFlags::DIRECTORY)?;
        let mut begin = 0;
        while begin < self.length {
            let end = self.text[begin..self.length]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(self.length, |at| begin + at);
            if end == begin {
                begin += 1; // slashes side by side
                continue;
            }
            let is_last = self.text[end..self.length].iter().all(|byte| *byte == b'/');
            parent = match self.open_prefix(root, end) {
                Err(Errno::NOENT) => {
                    match self.make_one(parent.as_fd(), begin, end, if is_last { last } else { Missing::Folder }) {
                        Ok(()) => self.open_prefix(root, end)?,
                        Err(Errno::EXIST) => return self.follow(parent.as_fd(), begin, end),
                        Err(errno) => return Err(errno),
                    }
                }
                answer => answer?,
            };
            begin = end + 1;
        }
        Ok(End::Reached(parent))
    }

    fn open_prefix(&mut self, root: BorrowedFd<'_>, end: usize) -> Result<OwnedFd, Errno> {
        self.with_end(end, 0, |prefix| open(root, prefix, OFlags::PATH))
    }

    fn make_one(&mut self, parent: BorrowedFd<'_>, begin: usize, end: usize, what: Missing) -> Result<(), Errno> {
        self.with_end(end, begin, |name| one(parent, name, what))
    }

    /// Something is there that leads nowhere: a link. Its text takes the place of its name.
    fn follow(&mut self, parent: BorrowedFd<'_>, begin: usize, end: usize) -> Result<End, Errno> {
        let mut link = [0; Walk::LONGEST];
        let length = match self.with_end(end, begin, |name| readlinkat_raw(parent, name, &mut link[..])) {
            Ok(length) => length,
            Err(Errno::INVAL) => return Ok(End::LinkToNowhere), // it has become something else: look again
            Err(errno) => return Err(errno),
        };
        let rest = Walk::new(&self.text[end..self.length])?;
        self.length = if link.first() == Some(&b'/') { 0 } else { begin };
        self.append(&link[..length])?;
        self.append(&rest.text[..rest.length])?;
        Ok(End::LinkToNowhere)
    }

    /// Calls `with` the text from `begin` to `end` as a string.
    fn with_end<T>(
        &mut self,
        end: usize,
        begin: usize,
        with: impl FnOnce(&CStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let there = std::mem::replace(&mut self.text[end], 0);
        let answer = CStr::from_bytes_until_nul(&self.text[begin..=end]).map_err(|_| Errno::INVAL).and_then(with);
        self.text[end] = there;
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::root::{Target, open_host_folder};
    use super::*;

    #[test]
    fn what_is_missing_is_made_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        let links =
            [("escape", "../../outside"), ("far", "/deep/er"), ("near", "far/est"), ("loop", "loop"), ("file", "/f")];
        for (link, to) in links {
            symlink(to, root.join(link)).unwrap();
        }
        let root_fd = open_host_folder(&std::ffi::CString::new(root.to_str().unwrap()).unwrap()).unwrap();
        let reach =
            |path: &str, missing| Target::new(path).unwrap().reach(root_fd.as_fd(), missing).map(|(_, made)| made);
        for (path, missing, there) in [
            ("a/b/c", Missing::Folder, "a/b/c"),
            ("a/b/file", Missing::File, "a/b/file"),
            ("escape/x", Missing::Folder, "outside/x"),
            ("near/y", Missing::File, "deep/er/est/y"),
            ("file", Missing::File, "f"),
        ] {
            assert_eq!(reach(path, missing), Ok(true), "{path}");
            assert_eq!(root.join(there).is_dir(), missing == Missing::Folder, "{path}");
            assert!(root.join(there).exists(), "{path}");
            assert_eq!(reach(path, missing), Ok(false), "{path} is there now");
        }
        assert_eq!(reach("loop/x", Missing::Folder), Err(Errno::LOOP));
        assert_eq!(reach("none", Missing::Refused), Err(Errno::NOENT));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made beside the root");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("x/".repeat(1500), dir.path().join("long")).unwrap();
        let root = open_host_folder(&std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap()).unwrap();
        let target = Target::new(&format!("long/{}", "y/".repeat(1000))).unwrap();
        assert_eq!(target.reach(root.as_fd(), Missing::Folder).unwrap_err(), Errno::NAMETOOLONG);
    }
}
