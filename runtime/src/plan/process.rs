//! The program and who it runs as.

use std::ffi::CString;
use std::os::fd::AsFd as _;

use rustix::fs::OFlags;
use rustix::process::{Gid, Resource};

use super::{Capabilities, Process, Scheduling, c_string, label, scheduling};
use crate::bundle::Error;
use crate::capability::{self, Set};
use crate::error::Failed;
use crate::mount::root::{self, Target};
use crate::sys::CStrArray;
use crate::{seccomp, spec};

/// Descriptors that the program gets beyond 0, 1 and 2.
#[derive(Debug, Clone, Copy, Default)]
pub struct Preserved {
    /// `LISTEN_FDS`: 3 and following, and the variables that tell of them.
    pub listen: i32,
    /// `--preserve-fds`: those after them.
    pub more: i32,
}

/// Plans a process, the first or one more. `root` is the container's root, for its /etc/passwd; `warn` is told of
/// capabilities that cannot be granted.
///
/// # Errors
/// A string has a zero byte, or the root cannot be read.
pub fn process(
    process: &spec::Process,
    filter: Option<seccomp::Program>,
    root: std::os::fd::BorrowedFd<'_>,
    preserved: Preserved,
    warn: &mut dyn FnMut(String),
) -> Result<Process, Error> {
    let mut environment = environment(process, root)?;
    if preserved.listen > 0 {
        environment.push(c_string("LISTEN_FDS", &format!("LISTEN_FDS={}", preserved.listen))?);
        environment.push(c"LISTEN_PID=1".to_owned());
    }
    let argv = process.args.iter().map(|arg| c_string("process.args", arg)).collect::<Result<Vec<_>, _>>()?;
    Ok(Process {
        cwd: c_string("process.cwd", &process.cwd)?,
        umask: process.user.umask.unwrap_or(0o022) & 0o777,
        uid: process.user.uid,
        gid: process.user.gid,
        groups: Some(process.user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect()),
        capabilities: process.capabilities.as_ref().map(|asked| capabilities(asked, warn)),
        no_new_privileges: process.no_new_privileges,
        filter,
        personality: None,
        scheduling: Scheduling {
            attributes: process.scheduler.as_ref().map(scheduling::attributes).transpose()?,
            io_priority: process.io_priority.as_ref().map(scheduling::io_priority).transpose()?,
            ..Scheduling::default()
        },
        labels: label::labels(process)?,
        rlimits: process.rlimits.iter().filter_map(|limit| Some((rlimit(&limit.kind)?, bounds(limit)))).collect(),
        keyring: None,
        candidates: candidates(&process.args[0], &environment)?,
        argv: CStrArray::new(argv),
        environment: CStrArray::new(environment),
        first_closed: 3 + preserved.listen + preserved.more,
        stdio: None,
    })
}

/// The largest number stands for no limit.
pub fn bounds(limit: &spec::Rlimit) -> rustix::process::Rlimit {
    let bound = |value: u64| (value != u64::MAX).then_some(value);
    rustix::process::Rlimit { current: bound(limit.soft), maximum: bound(limit.hard) }
}

/// The number of a limit by its name. Source: getrlimit(2).
pub fn rlimit(kind: &str) -> Option<Resource> {
    Some(match kind.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}

/// The sets as asked for, without what this process cannot hand on; that is told once, by name, and not an error.
///
/// Source: runtime-spec config.md, "capabilities": what cannot be granted is a warning.
fn capabilities(asked: &spec::Capabilities, warn: &mut dyn FnMut(String)) -> Capabilities {
    let had = capability::bounding();
    let mut unknown = std::collections::BTreeSet::new();
    let mut refused = Set(0);
    let mut read = |names| {
        let (set, not_known) = Set::read(names);
        unknown.extend(not_known.into_iter().map(str::to_owned));
        refused.0 |= set.0 & !had.0;
        set.0 & had.0
    };
    let bounding = read(&asked.bounding);
    let permitted = read(&asked.permitted);
    let inheritable = read(&asked.inheritable);
    let effective = read(&asked.effective) & permitted;
    let ambient = read(&asked.ambient) & permitted & inheritable;
    for name in Set(read_all(&asked.ambient) & !(permitted & inheritable)).names() {
        warn(format!("can't raise ambient capability {name}: it is not both permitted and inheritable"));
    }
    let names: Vec<String> = unknown.into_iter().chain(refused.names().map(str::to_owned)).collect();
    if !names.is_empty() {
        warn(format!("capabilities that cannot be granted: {}", names.join(", ")));
    }
    Capabilities { bounding, effective, inheritable, permitted, ambient }
}

fn read_all(names: &[String]) -> u64 {
    Set::read(names).0.0
}

/// The environment with one value for each name, the last one, and a HOME.
fn environment(process: &spec::Process, root: std::os::fd::BorrowedFd<'_>) -> Result<Vec<CString>, Failed> {
    fn name(variable: &str) -> &str {
        variable.split('=').next().unwrap_or_default()
    }
    let mut kept: Vec<&str> = Vec::with_capacity(process.env.len() + 3);
    for variable in &process.env {
        match kept.iter_mut().find(|known| name(known) == name(variable)) {
            Some(known) => *known = variable,
            None => kept.push(variable),
        }
    }
    kept.retain(|variable| *variable != "HOME=");
    let mut environment =
        kept.iter().map(|variable| c_string("process.env", variable)).collect::<Result<Vec<_>, _>>()?;
    if !kept.iter().any(|variable| variable.starts_with("HOME=")) {
        let home = home(root, process.user.uid).unwrap_or_else(|| "/".into());
        environment.push(c_string("HOME", &format!("HOME={home}"))?);
    }
    Ok(environment)
}

/// The home folder of `uid` in the container's /etc/passwd. A file that is missing, too long or malformed has none.
fn home(root: std::os::fd::BorrowedFd<'_>, uid: u32) -> Option<String> {
    use std::io::{BufRead as _, BufReader, Read as _};
    const LONGEST: u64 = 10 << 20; // CVE-2026-47262: the image chose its size
    let target = Target::new("/etc/passwd").ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY; // it may be a fifo or a terminal
    let file = std::fs::File::from(root::open(root.as_fd(), target.path(), flags).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let lines = BufReader::new(file.take(LONGEST)).lines().map_while(Result::ok);
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.len() >= 6 && fields[2].parse() == Ok(uid)).then(|| fields[5].to_owned())
        })
        .next()
}

/// Where the program may be: the path itself if it has a slash, else below each folder of the container's own PATH.
fn candidates(program: &str, environment: &[CString]) -> Result<Vec<CString>, Failed> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program)?]);
    }
    let path = environment.iter().find_map(|variable| variable.to_str().ok()?.strip_prefix("PATH="));
    path.unwrap_or_default()
        .split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| c_string("process.args", &format!("{folder}/{program}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(env: &[&str], args: &[&str]) -> Process {
        let spec = spec::Process {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: env.iter().map(|variable| (*variable).to_owned()).collect(),
            cwd: "/".into(),
            ..spec::Process::default()
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        process(&spec, None, root.as_fd(), Preserved::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn the_last_value_of_a_variable_counts_and_home_is_found() {
        let planned = planned(&["A=1", "PATH=/bin", "A=2"], &["true"]);
        let environment: Vec<_> = planned.environment.strings().iter().map(|s| s.to_str().unwrap()).collect();
        assert_eq!(environment, ["A=2", "PATH=/bin", "HOME=/root"]);
    }

    #[test]
    fn a_program_is_looked_for_in_the_containers_path_unless_it_has_a_slash() {
        let paths =
            |planned: Process| planned.candidates.iter().map(|s| s.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(paths(planned(&["PATH=/a:/b"], &["x"])), ["/a/x", "/b/x"]);
        assert_eq!(paths(planned(&["PATH=/a:/b"], &["./x"])), ["./x"]);
        assert_eq!(paths(planned(&[], &["x"])), [""; 0]);
    }
}
