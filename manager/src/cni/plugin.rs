//! One run of one plugin: a verb and its parameters in the environment, an object on standard input, a result or an error
//! on standard output.
//!
//! Source: SPEC.md, "CNI operations", "Error".

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::attachment::Attachment;
use crate::error::{Error, Result};

/// A plugin that has said nothing for so long is ended.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a plugin may say.
const LONGEST: u64 = 1 << 20;
/// A program that is just being replaced is tried again so often.
const BUSY: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
        }
    }
}

/// Where a pod is attached, for the verbs that are about one.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub pod: &'a Attachment,
    pub interface: &'a str,
}

/// What a plugin says went wrong.
#[derive(Deserialize)]
struct Complaint {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// "Try again later." Source: SPEC.md, "Error".
const TRY_AGAIN: u32 = 11;

/// Finds a plugin. Its name was checked to be no path.
///
/// # Errors
/// `FailedPrecondition`: it is in none of the folders.
pub fn find(bin_dirs: &[PathBuf], program: &str) -> Result<PathBuf> {
    let found = bin_dirs.iter().map(|dir| dir.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let folders: Vec<String> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        Error::FailedPrecondition(format!("plugin {program} is in none of {}", folders.join(", ")))
    })
}

/// Runs a plugin in this process's own network namespace, and returns what it printed: an object, or nothing.
///
/// # Errors
/// `Unavailable`: the plugin asks to be tried again; `Unknown`: it fails, in its own words.
pub async fn run(
    bin_dirs: &[PathBuf],
    program: &str,
    verb: Verb,
    at: Option<At<'_>>,
    input: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>> {
    let path = find(bin_dirs, program)?;
    let failed = |why: String| Error::Unknown(format!("plugin {program}: {}: {why}", verb.as_str()));
    let mut child = start(&path, environment(bin_dirs, verb, at)).await.map_err(failed)?;
    let input = Value::Object(input.clone()).to_string();
    let told = tokio::time::timeout(PATIENCE, converse(&mut child, input.as_bytes())).await;
    let (status, stdout, stderr) = match told {
        Ok(told) => told.map_err(|error| failed(format!("talking to it: {error}")))?,
        Err(_) => return Err(failed(format!("it has not ended for {} s", PATIENCE.as_secs()))), // the drop kills it
    };
    let said = String::from_utf8_lossy(&stderr);
    if status.success() {
        if !said.trim().is_empty() {
            tracing::debug!(program, verb = verb.as_str(), "plugin: {}", said.trim());
        }
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        return match serde_json::from_slice(&stdout) {
            Ok(Value::Object(result)) => Ok(Some(result)),
            _ => Err(failed(format!("its result is not an object: {:.200}", String::from_utf8_lossy(&stdout)))),
        };
    }
    match serde_json::from_slice::<Complaint>(&stdout) {
        Ok(Complaint { code, msg, details }) => {
            let details = if details.is_empty() { details } else { format!("; {details}") };
            let text = format!("plugin {program}: {}: {msg}{details} (code {code})", verb.as_str());
            Err(if code == TRY_AGAIN { Error::Unavailable(text) } else { Error::Unknown(text) })
        }
        Err(_) => Err(failed(format!("{status}: {}{}", String::from_utf8_lossy(&stdout).trim(), said.trim()))),
    }
}

fn environment(bin_dirs: &[PathBuf], verb: Verb, at: Option<At<'_>>) -> Vec<(&'static str, String)> {
    let folders: Vec<String> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut environment = vec![("CNI_COMMAND", verb.as_str().to_owned()), ("CNI_PATH", folders.join(":"))];
    if let Some(At { pod, interface }) = at {
        let args: Vec<String> = pod.args().iter().map(|(key, value)| format!("{key}={value}")).collect();
        environment.extend([
            ("CNI_CONTAINERID", pod.id().to_owned()),
            ("CNI_NETNS", pod.netns.as_deref().unwrap_or(Path::new("")).display().to_string()),
            ("CNI_IFNAME", interface.to_owned()),
            ("CNI_ARGS", args.join(";")),
        ]);
    }
    environment
}

async fn start(path: &Path, environment: Vec<(&str, String)>) -> std::result::Result<Child, String> {
    let mut command = Command::new(path);
    command.envs(environment).current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for _ in 1..BUSY {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other.map_err(|error| Error::io("starting it", &error).to_string()),
        }
    }
    command.spawn().map_err(|error| Error::io("starting it", &error).to_string())
}

/// Writes all and reads all at once: a plugin may begin to answer before it has read everything.
async fn converse(child: &mut Child, input: &[u8]) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            match stdin.write_all(input).await {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error), // it need not read
                _ => {}
            }
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(write, all(stdout), all(stderr))?;
    Ok((child.wait().await?, stdout, stderr))
}

async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(LONGEST).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?; // or it would never end
    }
    Ok(bytes)
}
