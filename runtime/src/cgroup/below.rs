//! Cgroups below the container's own that one more process may join: `exec --cgroup [CONTROLLER[,CONTROLLER…]:]PATH`.
//!
//! Source: runc-exec(8).

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::path::CgroupPath;
use super::{Error, Join, v2};
use crate::error::words;

/// One such word, taken apart. Having one proves that its path does not lead above the container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// Of which hierarchies; all if empty.
    controllers: Vec<String>,
    path: PathBuf,
}

impl Below {
    /// # Errors
    /// The path leads out.
    pub fn read(text: &str) -> Result<Below, Error> {
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').map(str::to_owned).collect(), path),
            None => (Vec::new(), text),
        };
        let mut below = PathBuf::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if !below.pop() {
                        return refused(format!("{path} is not a sub cgroup path"));
                    }
                }
                part => below.push(part),
            }
        }
        Ok(Below { controllers, path: below })
    }
}

/// The ways in to the container's cgroups, or below them where that was asked.
///
/// # Errors
/// A controller that the container does not have, or a cgroup that is not there.
pub fn join(cgroup: &CgroupPath, asked: &[Below]) -> Result<Join, Error> {
    match cgroup {
        CgroupPath::V2 { path, .. } => {
            let mut place = path.clone();
            for below in asked {
                if !below.controllers.is_empty() {
                    return refused("cgroup v2 has no hierarchies to choose from: a path alone is needed".into());
                }
                place = path.join(&below.path);
            }
            if !place.is_dir() {
                return refused(not_there(&place, Errno::NOENT));
            }
            Ok(Join { into: Some(v2::directory(&place)?), tasks: Vec::new() })
        }
        CgroupPath::V1 { hierarchies } => {
            let wanted = asked.iter().flat_map(|below| &below.controllers);
            if let Some(unknown) = wanted.clone().find(|name| !hierarchies.iter().any(|h| h.has(name))) {
                return refused(format!("unknown controller {unknown}"));
            }
            let mut tasks = Vec::new();
            for hierarchy in hierarchies {
                let meant = |below: &&Below| {
                    below.controllers.is_empty() || below.controllers.iter().any(|name| hierarchy.has(name))
                };
                let below = asked.iter().rev().find(meant);
                let place = below.map_or_else(|| hierarchy.path.clone(), |below| hierarchy.path.join(&below.path));
                let file = place.join("tasks");
                match rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                    Ok(file) => tasks.push(file),
                    Err(Errno::NOENT) if place == hierarchy.path => {} // the container has none there
                    Err(errno) => return refused(not_there(&place, errno)),
                }
            }
            Ok(Join { into: None, tasks })
        }
    }
}

fn not_there(place: &Path, errno: Errno) -> String {
    format!("error adding pid of the new process: {}/cgroup.procs: {}", place.display(), words(errno))
}

fn refused<T>(why: String) -> Result<T, Error> {
    Err(Error::Refused { field: "--cgroup".into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_stays_below() {
        for (text, path) in [("/", ""), ("a/b", "a/b"), ("a/../b", "b"), ("/a//b/.", "a/b")] {
            assert_eq!(Below::read(text).unwrap(), Below { controllers: vec![], path: path.into() }, "{text}");
        }
        for text in ["..", "a/../..", "/..", "cpu:.."] {
            let said = Below::read(text).unwrap_err().to_string();
            assert!(said.ends_with("is not a sub cgroup path"), "{text}: {said}");
        }
        let some = Below::read("cpu,cpuacct:sub").unwrap();
        assert_eq!((some.controllers, some.path), (vec!["cpu".into(), "cpuacct".into()], "sub".into()));
    }
}
