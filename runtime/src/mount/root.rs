//! Paths inside a container's root. Whoever made that root chose every link in it, so a path is resolved once, by the
//! kernel, with the root as `/`, to a handle; what is done is done to the handle.
//!
//! Everything here may be called between clone and exec.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2};
use rustix::io::Errno;

/// A path from the specification, taken apart by the parent so that the child can make what is missing without
/// allocating. Having one proves that it has no `..`, no empty part and no zero byte; where it leads is decided each time.
#[derive(Debug)]
pub struct Target {
    /// `a`, `a/b`, `a/b/c`; none for the root itself.
    prefixes: Vec<std::ffi::CString>,
    /// The last part of each prefix.
    names: Vec<std::ffi::CString>,
}

/// What is made where a target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Folder,
    File,
    Refused,
}

impl Target {
    /// # Errors
    /// `INVAL` the path has a zero byte.
    pub fn new(path: &str) -> Result<Target, Errno> {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop(); // a container's path is cleaned as text before it is resolved, as its user sees it
                }
                part => parts.push(part),
            }
        }
        let string = |text: String| std::ffi::CString::new(text).map_err(|_| Errno::INVAL);
        Ok(Target {
            prefixes: (1..=parts.len()).map(|end| string(parts[..end].join("/"))).collect::<Result<_, _>>()?,
            names: parts.iter().map(|part| string((*part).to_owned())).collect::<Result<_, _>>()?,
        })
    }

    /// The whole path, relative to the root.
    pub fn path(&self) -> &CStr {
        self.prefixes.last().map_or(c".", |path| path)
    }

    pub fn name(&self) -> &CStr {
        self.names.last().map_or(c".", |name| name)
    }

    /// The folder that holds it, made if it is not there.
    ///
    /// # Errors
    /// As [`open`]; also those of mkdir(2).
    pub fn parent(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let above = self.prefixes.len().saturating_sub(1);
        self.folder(root, above)
    }

    /// A handle to it; what is missing on the way is made.
    ///
    /// # Errors
    /// As [`open`]; also those of mkdir(2) and mknod(2).
    pub fn reach(&self, root: BorrowedFd<'_>, missing: Missing) -> Result<OwnedFd, Errno> {
        match open(root, self.path(), OFlags::PATH) {
            Err(Errno::NOENT) if missing == Missing::Folder => self.folder(root, self.prefixes.len()),
            Err(Errno::NOENT) if missing == Missing::File => {
                let parent = self.parent(root)?;
                mknodat(&parent, self.name(), rustix::fs::FileType::RegularFile, Mode::from_raw_mode(0o755), 0)?;
                open(root, self.path(), OFlags::PATH)
            }
            answer => answer,
        }
    }

    /// The folder that the first `depth` parts lead to, made if it is not there.
    fn folder(&self, root: BorrowedFd<'_>, depth: usize) -> Result<OwnedFd, Errno> {
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        let path = if depth == 0 { c"." } else { &self.prefixes[depth - 1] };
        match open(root, path, folder) {
            Err(Errno::NOENT) => {}
            answer => return answer,
        }
        let mut parent = open(root, c".", folder)?;
        for (prefix, name) in self.prefixes.iter().zip(&self.names).take(depth) {
            parent = match open(root, prefix, folder) {
                Err(Errno::NOENT) => {
                    match mkdirat(&parent, name.as_c_str(), Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {} // a link to nowhere exists too; opening it then says so
                        Err(errno) => return Err(errno),
                    }
                    open(root, prefix, folder)?
                }
                answer => answer?,
            };
        }
        Ok(parent)
    }
}

/// Opens `path` as if `root` were `/`. The handle lies inside `root` even while someone renames folders under us.
///
/// # Errors
/// `ELOOP` a magic link, or too many links · `EXDEV` the walk would leave `root`.
///
/// Source: openat2(2), `RESOLVE_IN_ROOT`; Linux 5.6.
pub fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), within) {
            Err(Errno::AGAIN) => {} // a rename raced the walk: openat2(2) says to try again
            answer => return answer,
        }
    }
}

/// Opens a folder of the host.
///
/// # Errors
/// Those of open(2).
pub fn open_host_folder(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolve(root: &std::path::Path, path: &str) -> Result<String, Errno> {
        let root_fd = open_host_folder(&std::ffi::CString::new(root.to_str().unwrap()).unwrap()).unwrap();
        let fd = Target::new(path)?.reach(root_fd.as_fd(), Missing::Refused)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))).unwrap();
        Ok(link.strip_prefix(root).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "").unwrap();
        for (link, to) in [("up", ".."), ("abs", "/etc"), ("loop", "loop")] {
            symlink(to, dir.path().join(link)).unwrap();
        }
        for (path, expect) in [
            ("etc/passwd", Ok("etc/passwd")),
            ("/etc/../etc//passwd", Ok("etc/passwd")),
            ("../../etc/passwd", Ok("etc/passwd")),
            ("up/up/etc/passwd", Ok("etc/passwd")),
            ("abs/passwd", Ok("etc/passwd")),
            ("loop", Err(Errno::LOOP)),
            ("none", Err(Errno::NOENT)),
        ] {
            assert_eq!(resolve(dir.path(), path), expect.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_made_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        symlink("../../outside", root.join("escape")).unwrap();
        let root_fd = open_host_folder(&std::ffi::CString::new(root.to_str().unwrap()).unwrap()).unwrap();
        Target::new("a/b/c").unwrap().reach(root_fd.as_fd(), Missing::Folder).unwrap();
        Target::new("a/b/file").unwrap().reach(root_fd.as_fd(), Missing::File).unwrap();
        assert!(root.join("a/b/c").is_dir() && root.join("a/b/file").is_file());
        assert!(Target::new("escape/x").unwrap().reach(root_fd.as_fd(), Missing::Folder).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made beside the root");
    }
}
