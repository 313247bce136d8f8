//! The runtime, called as containerd's own shim calls runc: by argv, a pid file, a log file and an exit code.
//!
//! Source: containerd/go-runc. No call blocks the loop; any program that speaks this command line will do.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use serde::Deserialize;

use crate::children::{Child, Children};
use crate::error::{Doing as _, Failed};
use crate::options::Options;
use crate::sys;

/// Where the default runtime keeps its state: nothing of an installed runc is touched.
const ROOT: &str = "/run/tare";
/// In the bundle, the name of the runtime's binary; containerd's runc shim writes the same.
const FILE: &str = "runtime";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the runtime itself says, and nothing else: clients choose exit codes by these words.
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Which binary is called, and what comes before each verb.
pub struct Runtime {
    binary: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    systemd_cgroup: bool,
    debug: bool,
    calls: Cell<u32>,
}

/// Standard input, output and error of a command, and of the container's process that it starts.
pub struct Streams {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

impl Streams {
    pub fn null() -> Streams {
        Streams { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }
    }
}

impl Runtime {
    pub fn new(options: &Options, namespace: &str, bundle: &Path, debug: bool) -> Runtime {
        let named = Some(&options.binary_name).filter(|name| !name.is_empty());
        let root = if options.root.as_os_str().is_empty() { Path::new(ROOT) } else { &options.root };
        Runtime {
            binary: named.map_or_else(default_binary, PathBuf::from),
            root: root.join(namespace),
            bundle: bundle.to_owned(),
            systemd_cgroup: options.systemd_cgroup,
            debug,
            calls: Cell::new(0),
        }
    }

    /// Writes its name into the bundle.
    ///
    /// # Errors
    /// The bundle cannot be written.
    pub fn write_name(&self) -> Result<(), Failed> {
        let path = self.bundle.join(FILE);
        fs::write(&path, self.binary.as_os_str().as_encoded_bytes()).doing(|| format!("writing {}", path.display()))
    }

    /// Runs a command to its end. What it says in its log becomes the error.
    ///
    /// # Errors
    /// It cannot be run, or did not succeed.
    pub async fn run<A: AsRef<OsStr>>(
        &self,
        children: &Rc<Children>,
        args: &[A],
        streams: Streams,
    ) -> Result<(), Error> {
        let log = self.next_log();
        let mut command = self.command(&log, args);
        command.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
        sys::die_with_us(&mut command);
        let child = command.spawn().map_err(|error| self.not_run(error))?;
        drop(command); // and with it our ends of the streams
        let child = children.adopt(Pid::from_child(&child)).doing(|| self.running())?;
        let status = child.exit().await.status;
        let said = last_error(&log);
        let _ = fs::remove_file(&log); // it is not there if nothing was said
        if status == 0 { Ok(()) } else { Err(Error::Said(said.unwrap_or_else(|| format!("exit status {status}")))) }
    }

    /// As [`Runtime::run`]; returns what was written to standard output.
    ///
    /// # Errors
    /// As [`Runtime::run`].
    pub async fn output<A: AsRef<OsStr>>(&self, children: &Rc<Children>, args: &[A]) -> Result<Vec<u8>, Error> {
        let doing = || "making a file in memory".into();
        let output = File::from(memfd_create("output", MemfdFlags::CLOEXEC).doing(doing)?);
        let stdout = output.try_clone().doing(doing)?;
        self.run(children, args, Streams { stdout: stdout.into(), ..Streams::null() }).await?;
        let mut text = Vec::new();
        (&output).rewind().and_then(|()| (&output).read_to_end(&mut text)).doing(|| "reading what it wrote".into())?;
        Ok(text)
    }

    /// As [`Runtime::run`], where there is nothing else to do meanwhile; returns what was written to standard output.
    ///
    /// # Errors
    /// It cannot be run, or did not succeed.
    pub fn run_alone<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Vec<u8>, Error> {
        let log = self.next_log();
        let mut command = self.command(&log, args);
        let ended = command.stdin(Stdio::null()).stderr(Stdio::null()).output().map_err(|error| self.not_run(error))?;
        let said = last_error(&log);
        let _ = fs::remove_file(&log);
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        Err(Error::Said(said.unwrap_or_else(|| ended.status.to_string())))
    }

    fn command<A: AsRef<OsStr>>(&self, log: &Path, args: &[A]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root);
        if self.debug {
            command.arg("--debug");
        }
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // Runtimes and their wrappers look for config.json where they are; a bundle that is gone is not worth an error here.
        if self.bundle.is_dir() {
            command.current_dir(&self.bundle);
        }
        command.args(args).env_remove("NOTIFY_SOCKET");
        command
    }

    /// A name that PATH does not have is told in the words that clients know from Go's `exec`.
    fn not_run(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::NotFound && self.binary.components().count() == 1 {
            return Error::Said(format!("exec: {:?}: executable file not found in $PATH", self.binary));
        }
        let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
        Failed { doing: self.running(), errno }.into()
    }

    fn running(&self) -> String {
        format!("running {}", self.binary.display())
    }

    /// A log for each call: two at once do not read each other's errors.
    fn next_log(&self) -> PathBuf {
        self.calls.set(self.calls.get() + 1);
        match self.calls.get() {
            1 => self.bundle.join("log.json"),
            call => self.bundle.join(format!("log-{call}.json")),
        }
    }
}

/// The child whose number a pid file holds.
///
/// # Errors
/// The file holds no number, or there is no such process.
pub fn read_pid_file(children: &Rc<Children>, path: &Path) -> Result<Child, Failed> {
    let doing = || format!("reading the pid file {}", path.display());
    let text = fs::read_to_string(path).doing(doing)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::INVAL).doing(doing)?;
    children.adopt(pid).doing(|| format!("watching process {}", text.trim()))
}

/// `tare` beside this program, else wherever PATH has it.
fn default_binary() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("tare"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "tare".into())
}

/// A line of the log; runc writes one to a line, crun spreads one over several.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

fn last_error(log: &Path) -> Option<String> {
    let text = match fs::read(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        other => other.ok()?,
    };
    let lines = serde_json::Deserializer::from_slice(&text).into_iter::<Line>().map_while(Result::ok);
    lines.filter(|line| line.level == "error").last().map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor;

    fn runtime(dir: &Path, script: &str) -> Runtime {
        use std::os::unix::fs::PermissionsExt as _;
        let binary = dir.join("rt");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let options = Options { binary_name: binary.display().to_string(), ..Options::default() };
        Runtime::new(&options, "ns", dir, false)
    }

    fn outcome(script: &'static str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path(), script);
        let result = reactor::run(async move {
            runtime.run(&Rc::new(Children::default()), &["start", "one"], Streams::null()).await
        });
        result.unwrap().map_err(|error| error.to_string())
    }

    #[test]
    fn the_last_error_of_the_log_is_the_error() {
        assert_eq!(outcome("exit 0"), Ok(()));
        assert_eq!(outcome("exit 7"), Err("exit status 7".into()));
        // --root R --log FILE: the fourth word.
        let lines = r#"echo '{"level":"error","msg":"first"}
{"level":"warning","msg":"no"}
{ "msg": "container does not exist",
  "level": "error" }' > "$4"; exit 1"#;
        assert_eq!(outcome(lines), Err("container does not exist".into()));
    }

    #[test]
    fn a_runtime_that_is_not_there_is_named() {
        let options = Options { binary_name: "/nonexistent/rt".into(), ..Options::default() };
        let runtime = Runtime::new(&options, "ns", Path::new("/tmp"), false);
        let error = runtime.run_alone(&["features"]).unwrap_err().to_string();
        assert_eq!(error, "running /nonexistent/rt: no such file or directory");
        let options = Options { binary_name: "no-such-runtime".into(), ..Options::default() };
        let runtime = Runtime::new(&options, "ns", Path::new("/tmp"), false);
        let error = runtime.run_alone(&["features"]).unwrap_err().to_string();
        assert_eq!(error, r#"exec: "no-such-runtime": executable file not found in $PATH"#);
    }
}
