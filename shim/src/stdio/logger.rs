//! A program that takes a container's output: `binary:///path/to/program?key=value`.
//!
//! It gets standard output as descriptor 3 and standard error as 4, and says with a byte on 5, or by closing it, that it
//! is ready. Its arguments are the keys and values, its environment `CONTAINER_ID` and `CONTAINER_NAMESPACE` and nothing
//! else.
//!
//! Source: containerd core/runtime/v2/logging, `process/io.go` of its runc shim.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::{Error, Owner};
use crate::children::Child;
use crate::error::Doing as _;
use crate::{reactor, sys};

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end once nobody writes any more, and then once it was asked to.
const END: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    args: Vec<String>,
    /// An end of file is not enough to be ready: `binary-v2://`, containerd 2.3.
    says_so: bool,
}

impl Program {
    /// # Errors
    /// The path is not absolute, or an escape is none.
    pub fn parse(uri: &str) -> Result<Program, Error> {
        let bad = |reason| Error::Uri { uri: uri.to_owned(), reason };
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| bad("there is no scheme"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let decode =
            |text: &str| decoded(text.as_bytes()).ok_or_else(|| bad("an escape is not % and two digits of UTF-8"));
        let path = PathBuf::from(decode(path)?);
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(bad("the program's path is not absolute"));
        }
        let mut args = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            args.extend([decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?]); // as queries of URLs
        }
        Ok(Program { path, args, says_so: scheme == "binary-v2" })
    }
}

/// Percent-decoding.
fn decoded(mut rest: &[u8]) -> Option<String> {
    let mut bytes = Vec::new();
    while let Some((&first, after)) = rest.split_first() {
        (bytes, rest) = match first {
            b'%' => {
                let hex = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(hex, 16).ok()?);
                (bytes, &after[2..])
            }
            _ => {
                bytes.push(first);
                (bytes, after)
            }
        };
    }
    String::from_utf8(bytes).ok()
}

pub struct Logger {
    child: Child,
}

impl Logger {
    /// Starts it and waits until it is ready; returns the writing ends for output and error.
    pub async fn start(program: Program, owner: &Owner<'_>) -> Result<(Logger, [OwnedFd; 2]), Error> {
        let path = program.path;
        let doing = || format!("starting the logger {}", path.display());
        let pipe = || pipe_with(PipeFlags::CLOEXEC).doing(doing);
        let ((out_reader, out), (err_reader, err), (ready, ready_writer)) = (pipe()?, pipe()?, pipe()?);
        owner.give(&out)?;
        owner.give(&err)?;
        let mut command = Command::new(&path);
        command.args(program.args).env_clear();
        command.env("CONTAINER_ID", owner.id).env("CONTAINER_NAMESPACE", owner.namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::pass_from_3(&mut command, &[out_reader, err_reader, ready_writer]).doing(doing)?;
        let child = command.spawn().doing(doing)?;
        drop(command); // and with it our copies of the logger's ends
        let child = owner.children.adopt(Pid::from_child(&child)).doing(doing)?;
        let logger = Logger { child };
        let answered = reactor::timeout(READY, reactor::readable(&ready)).await.is_some();
        let says_so = answered && rustix::io::read(&ready, &mut [0; 1]) == Ok(1);
        if !answered || program.says_so && !says_so {
            drop((out, err)); // or it would wait for more
            logger.finish().await;
            return Err(Error::Logger(path));
        }
        Ok((logger, [out, err]))
    }

    /// Waits for its end, which comes when nobody writes any more; insists if it does not.
    pub async fn finish(self) {
        let child = self.child;
        if reactor::timeout(END.0, child.exit()).await.is_some() {
            return;
        }
        let _ = child.signal(libc::SIGTERM); // it may be gone by now
        if reactor::timeout(END.1, child.exit()).await.is_none() {
            let _ = child.signal(libc::SIGKILL);
            child.exit().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::rc::Rc;

    use super::super::{Asked, Stdio};
    use super::*;
    use crate::children::Children;

    #[test]
    fn a_uri_becomes_a_program_and_its_arguments() {
        let program = Program::parse("binary:///usr/bin/log%20ger?id=a%2Fb&flag&x=1+%2B").unwrap();
        assert_eq!(program.path, PathBuf::from("/usr/bin/log ger"));
        assert_eq!(program.args, ["id", "a/b", "flag", "", "x", "1 +"]);
        for bad in ["binary://relative", "binary:///a%", "binary:///a%zz", "binary:///a%00"] {
            assert!(Program::parse(bad).is_err(), "{bad}");
        }
    }

    /// How a logger fares that does `script` and then waits for its end, under each scheme.
    fn started(script: &str) -> [bool; 2] {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("logger");
        fs::write(&program, format!("#!/bin/sh\n{script}\n/bin/cat <&3\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        ["binary", "binary-v2"].map(|scheme| {
            let program = Program::parse(&format!("{scheme}://{}", program.display())).unwrap();
            reactor::run(async move {
                let children = Rc::new(Children::default());
                let logs = crate::logs::Logs::new("ns", "one", children.clone());
                let owner = Owner {
                    namespace: "ns",
                    id: "one",
                    children: &children,
                    logs: &logs,
                    uid: 1000,
                    gid: 1001,
                    leaves_children: false,
                };
                let Ok((logger, ends)) = Logger::start(program, &owner).await else { return false };
                for end in &ends {
                    let found = rustix::fs::fstat(end).unwrap();
                    assert_eq!(
                        (found.st_uid, found.st_gid),
                        (1000, 1001),
                        "the options' IoUid and IoGid own the pipes"
                    );
                }
                drop(ends);
                logger.finish().await;
                true
            })
            .unwrap()
        })
    }

    #[test]
    fn a_logger_is_ready_when_it_says_so_and_in_the_older_scheme_when_it_closes_the_pipe() {
        assert_eq!(started("echo >&5; exec 5>&-"), [true, true]);
        assert_eq!(started("exec 5>&-"), [true, false]);
    }

    #[test]
    fn a_logger_gets_both_outputs_and_two_variables_and_ends_with_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let (program, log) = (dir.path().join("logger"), dir.path().join("log"));
        let script = format!(
            "#!/bin/sh\nexec > {0}\n/usr/bin/env | /usr/bin/sort | /bin/grep CONTAINER\necho \"$@\"\nexec 5>&-\n/bin/cat <&3\n/bin/cat <&4\n",
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?k=v", program.display());
        reactor::run(async move {
            let children = Rc::new(Children::default());
            let logs = crate::logs::Logs::new("ns", "one", children.clone());
            let owner = Owner {
                namespace: "ns",
                id: "one",
                children: &children,
                logs: &logs,
                uid: 0,
                gid: 0,
                leaves_children: false,
            };
            let asked = Asked { stdout: uri.clone(), stderr: uri, ..Asked::default() };
            let (stdio, streams) = Stdio::open(&asked, &owner).await.unwrap();
            let mut process = Command::new("/bin/sh")
                .args(["-c", "echo out; echo err >&2"])
                .stdout(streams.stdout)
                .stderr(streams.stderr)
                .spawn()
                .unwrap();
            process.wait().unwrap();
            stdio.finish().await;
        })
        .unwrap();
        let said = fs::read_to_string(&log).unwrap();
        assert_eq!(said, "CONTAINER_ID=one\nCONTAINER_NAMESPACE=ns\nk v\nout\nerr\n");
    }
}
