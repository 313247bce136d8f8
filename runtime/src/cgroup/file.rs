//! Files of a cgroup: values in, values out.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Doing, Failed};

/// Writes `value` in one call, as the kernel asks for.
pub fn write(path: &Path, value: &str) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// The whole content, without the newline at its end.
pub fn read(path: &Path) -> Result<String, Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::with_capacity(512);
    loop {
        content.reserve(512);
        let filled = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content))?;
        if filled == 0 {
            break;
        }
    }
    let mut text = String::from_utf8(content).map_err(|_| Errno::ILSEQ)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// A number, if the file exists and has one; `max` is the highest.
pub fn number(path: &Path) -> Option<u64> {
    match read(path).ok()?.as_str() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Lines of `key value`.
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(key, value)| Some((key, value.parse().ok()?)))
}

/// Makes a directory and those above it. Says whether it was there.
pub fn make(path: &Path) -> Result<bool, Failed> {
    let mode = Mode::from_raw_mode(0o755);
    match rustix::fs::mkdir(path, mode) {
        Ok(()) => Ok(false),
        Err(Errno::EXIST) => Ok(true),
        Err(Errno::NOENT) if path.parent().is_some() => {
            make(path.parent().unwrap_or(path))?;
            match rustix::fs::mkdir(path, mode) {
                Err(Errno::EXIST) => Ok(true), // another container's, a moment ago
                done => done.map(|()| false).doing(|| format!("making cgroup {}", path.display())),
            }
        }
        Err(errno) => Err(errno).doing(|| format!("making cgroup {}", path.display())),
    }
}

/// The cgroups below `path`, deepest first, and last `path` itself. One that is gone has none.
pub fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(path, &mut found);
    found
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            collect(&entry.path(), found);
        }
        found.push(path.to_owned());
    }
}

/// The processes of `path` and of all cgroups below it.
pub fn pids(path: &Path) -> Result<Vec<i32>, Failed> {
    let mut pids = Vec::new();
    for cgroup in tree(path) {
        let procs = cgroup.join("cgroup.procs");
        match read(&procs) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            Err(Errno::NOENT | Errno::NODEV) => {} // removed while we looked
            // A threaded cgroup lists its processes at its domain: cgroup-v2.rst, "Threads".
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno).doing(|| format!("reading {}", procs.display())),
        }
    }
    Ok(pids)
}

/// The sizes of huge pages that the files of a hugetlb cgroup speak of: `2MB`.
pub fn page_sizes(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("hugetlb.")?.split('.').next()?.to_owned()))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
