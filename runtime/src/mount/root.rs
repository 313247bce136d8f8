//! Paths inside a container's root. Whoever made that root chose every link in it, so a path is resolved once, by the
//! kernel, with the root as `/`, to a handle; what is done is done to the handle.
//!
//! Everything here may be called between clone and exec.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::make;

/// A path from the specification, taken apart by the parent. Having one proves that it has no `..`, no empty part and no
/// zero byte; where it leads is decided each time.
#[derive(Debug)]
pub struct Target {
    path: CString,
    /// All but the last part.
    parent: CString,
    name: CString,
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
        let string = |text: &str| CString::new(if text.is_empty() { "." } else { text }).map_err(|_| Errno::INVAL);
        let (name, above) = parts.split_last().map_or(("", &[][..]), |(name, above)| (*name, above));
        Ok(Target { path: string(&parts.join("/"))?, parent: string(&above.join("/"))?, name: string(name)? })
    }

    /// The whole path, relative to the root.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// The folder that holds it, made if it is not there.
    ///
    /// # Errors
    /// As [`open`]; also those of mkdir(2).
    pub fn parent(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        match open(root, &self.parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => make::path(root, &self.parent, Missing::Folder),
            answer => answer,
        }
    }

    /// A handle to it, and whether it had to be made; what is missing on the way is made too.
    ///
    /// # Errors
    /// As [`open`]; also those of mkdir(2) and mknod(2).
    pub fn reach(&self, root: BorrowedFd<'_>, missing: Missing) -> Result<(OwnedFd, bool), Errno> {
        match open(root, &self.path, OFlags::PATH) {
            Err(Errno::NOENT) if missing != Missing::Refused => Ok((self.make(root, missing)?, true)),
            answer => Ok((answer?, false)),
        }
    }

    /// Mostly the last part alone is missing, and no link to nowhere has its name.
    fn make(&self, root: BorrowedFd<'_>, missing: Missing) -> Result<OwnedFd, Errno> {
        let folder = open(root, &self.parent, OFlags::PATH | OFlags::DIRECTORY);
        match folder.and_then(|folder| make::one(folder.as_fd(), &self.name, missing)) {
            Ok(()) => open(root, &self.path, OFlags::PATH),
            Err(_) => make::path(root, &self.path, missing),
        }
    }

    /// A handle to a folder on whose way there is no link, made if it is not there.
    ///
    /// # Errors
    /// `ELOOP` a link.
    pub fn reach_ordinary(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let ordinary = || openat2(root, &self.path, flags, Mode::empty(), resolve);
        match ordinary() {
            Err(Errno::NOENT) => {
                make::path(root, &self.path, Missing::Folder)?;
                ordinary()
            }
            answer => answer,
        }
    }
}

/// The folders that hold targets which come one after the other: many lie in the same.
pub struct Parents<'a> {
    root: BorrowedFd<'a>,
    last: Option<(&'a CStr, OwnedFd)>,
}

impl<'a> Parents<'a> {
    pub fn below(root: BorrowedFd<'a>) -> Parents<'a> {
        Parents { root, last: None }
    }

    /// # Errors
    /// As [`Target::parent`].
    pub fn of(&mut self, target: &'a Target) -> Result<BorrowedFd<'_>, Errno> {
        let folder = match self.last.take() {
            Some((path, folder)) if path == &*target.parent => folder,
            _ => target.parent(self.root)?,
        };
        Ok(self.last.insert((&target.parent, folder)).1.as_fd())
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
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolve(root: &std::path::Path, path: &str) -> Result<String, Errno> {
        let root_fd = open_host_folder(&std::ffi::CString::new(root.to_str().unwrap()).unwrap()).unwrap();
        let (fd, _) = Target::new(path)?.reach(root_fd.as_fd(), Missing::Refused)?;
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
}
