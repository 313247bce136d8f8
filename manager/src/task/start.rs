//! Starting a shim, and asking its binary to clean up after one that died: argv, environment, standard input and output.
//!
//! `start` takes two dialects on standard input. Our own shim is told everything (`BootstrapParams`, as containerd 2.3
//! does); any other gets what all of them understand, the runtime options as an `Any`. The answer comes in three, told
//! apart by their first byte: a protobuf `BootstrapResult` begins with the tag of its version (0x08), JSON with `{`,
//! and the rest is an address.
//!
//! Source: containerd's `pkg/shim/util.go`, `core/runtime/v2/{binary,shim}.go`, `api/runtime/bootstrap/v1`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use prost::Message as _;
use prost_types::Any;
use serde::{Deserialize, Serialize};
use tare_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult, Extension};
use tare_proto::containerd::task::v3::DeleteResponse;
use tare_proto::containerd::types::RuntimeInfo;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::{Doing as _, Error};
use crate::names::{Id, Namespace};

/// A shim that has not answered by then never will.
const START: Duration = Duration::from_secs(60);
/// As containerd allows.
const DELETE: Duration = Duration::from_secs(5);

/// What every shim is told of this daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The gRPC socket.
    pub address: PathBuf,
    /// Where shims send events.
    pub ttrpc: PathBuf,
    /// Where shims make their sockets, if they can be told.
    pub sockets: PathBuf,
    /// This program, for `publish`.
    pub program: PathBuf,
    pub debug: bool,
}

/// How a running shim is reached; `bootstrap.json` in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Of the Task API: 2 or 3.
    pub version: i32,
    pub address: String,
    #[serde(default)]
    pub protocol: String,
}

/// One task's shim as a program to call.
pub struct Caller<'a> {
    pub daemon: &'a Daemon,
    pub binary: &'a Path,
    pub namespace: &'a Namespace,
    pub id: &'a Id,
    pub bundle: &'a Path,
}

impl Caller<'_> {
    /// Runs `start`: afterwards a shim serves this task, be it a new one or the one of its group.
    ///
    /// # Errors
    /// What the shim said on standard error.
    pub async fn start(&self, options: Option<&Any>) -> Result<Endpoint, Error> {
        let output = self.run("start", &[], self.input(options), START).await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Unknown(format!("starting {}: {}", self.binary.display(), said.trim())));
        }
        Endpoint::parse(&output.stdout)
            .map_err(|why| Error::Unknown(format!("starting {}: its answer {}", self.binary.display(), why)))
    }

    /// Runs `delete`, which cleans what a dead shim left and says how the task ended.
    ///
    /// # Errors
    /// What the shim said on standard error.
    pub async fn delete(&self) -> Result<DeleteResponse, Error> {
        let bundle = ["-bundle".into(), self.bundle.into()];
        let output = self.run("delete", &bundle, Vec::new(), DELETE).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(Error::Unknown(format!("cleaning up with {}: {}", self.binary.display(), said.trim())));
        }
        if !said.trim().is_empty() {
            tracing::warn!(namespace = %self.namespace, id = %self.id, "cleaning up: {}", said.trim());
        }
        DeleteResponse::decode(output.stdout.as_slice()).map_err(|error| {
            Error::Unknown(format!("cleaning up with {}: reading its answer: {error}", self.binary.display()))
        })
    }

    async fn run(&self, verb: &str, more: &[OsString], input: Vec<u8>, limit: Duration) -> Result<Output, Error> {
        let mut command = Command::new(self.binary);
        command.args(["-namespace", self.namespace.as_str(), "-address"]).arg(&self.daemon.address);
        command.arg("-publish-binary").arg(&self.daemon.program).args(["-id", self.id.as_str()]).args(more);
        if self.daemon.debug {
            command.arg("-debug");
        }
        command
            .arg(verb)
            .env("GOMAXPROCS", "2") // the reference shim is written in Go and mostly idle
            .env("MAX_SHIM_VERSION", "2") // what every daemon has said so far, whatever it understands
            .env("TTRPC_ADDRESS", &self.daemon.ttrpc)
            .env("GRPC_ADDRESS", &self.daemon.address)
            .env("NAMESPACE", self.namespace.as_str())
            // A ctrl-C meant for us does not reach containers.
            .process_group(0);
        // A bundle that is gone must not keep `delete` from running.
        command.current_dir(if self.bundle.is_dir() { self.bundle } else { Path::new("/") });
        talk(command, input, &format!("running {} {verb}", self.binary.display()), limit).await
    }

    fn input(&self, options: Option<&Any>) -> Vec<u8> {
        if self.binary.file_name().is_none_or(|name| name != OURS) {
            return options.map(prost::Message::encode_to_vec).unwrap_or_default();
        }
        BootstrapParams {
            instance_id: self.id.to_string(),
            namespace: self.namespace.to_string(),
            log_level: if self.daemon.debug { -4 } else { 0 }, // slog's scale: debug, info
            containerd_version: crate::VERSION.to_owned(),
            containerd_ttrpc_address: self.daemon.ttrpc.display().to_string(),
            containerd_grpc_address: self.daemon.address.display().to_string(),
            containerd_binary: self.daemon.program.display().to_string(),
            extensions: options.map(|options| Extension { value: Some(options.clone()) }).into_iter().collect(),
            socket_dir: self.daemon.sockets.display().to_string(),
        }
        .encode_to_vec()
    }
}

/// Runs a program to its end, with something to read.
async fn talk(mut command: Command, input: Vec<u8>, doing: &str, limit: Duration) -> Result<Output, Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let talk = async {
        let mut child = command.spawn().doing(|| doing.to_owned())?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(&input).await {
                // A program need not read its input to its end; what it says tells why.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written.doing(|| doing.to_owned())?,
            }
        }
        child.wait_with_output().await.doing(|| doing.to_owned())
    };
    tokio::time::timeout(limit, talk)
        .await
        .map_err(|_| Error::Unavailable(format!("{doing}: no answer within {} s", limit.as_secs())))?
}

impl Endpoint {
    /// # Errors
    /// What is wrong with the answer.
    fn parse(answer: &[u8]) -> Result<Endpoint, String> {
        let endpoint = match answer.first() {
            None => return Err("is empty".into()),
            Some(0x08) => {
                let result = BootstrapResult::decode(answer).map_err(|error| format!("cannot be read: {error}"))?;
                Endpoint { version: result.version, address: result.address, protocol: result.protocol }
            }
            Some(b'{') => serde_json::from_slice(answer).map_err(|error| format!("cannot be read: {error}"))?,
            Some(_) => Endpoint {
                version: 2,
                address: String::from_utf8_lossy(answer).trim().to_owned(),
                protocol: "ttrpc".into(),
            },
        };
        endpoint.path()?;
        Ok(endpoint)
    }

    /// Reads what [`Endpoint::save`] wrote; or what the shim itself did, if the daemon was killed before it could.
    ///
    /// # Errors
    /// There is no such file, or it is not one of ours.
    pub fn load(bundle: &Path) -> Result<Endpoint, Error> {
        let saved = bundle.join("bootstrap.json");
        let path = if saved.exists() { saved } else { bundle.join("address") };
        let bytes = std::fs::read(&path).map_err(|error| Error::io(format!("reading {}", path.display()), &error))?;
        Endpoint::parse(&bytes).map_err(|why| Error::Unknown(format!("reading {}: it {why}", path.display())))
    }

    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, bundle: &Path) -> Result<(), Error> {
        let path = bundle.join("bootstrap.json");
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::Internal(format!("writing {}: {error}", path.display())))?;
        std::fs::write(&path, json).map_err(|error| Error::io(format!("writing {}", path.display()), &error))
    }

    /// The Unix socket.
    ///
    /// # Errors
    /// It is none, or the protocol or version is not spoken here.
    pub fn path(&self) -> Result<&Path, String> {
        if !matches!(self.version, 2 | 3) {
            return Err(format!("names version {} of the Task API: 2 and 3 are spoken", self.version));
        }
        if !matches!(self.protocol.as_str(), "ttrpc" | "") {
            return Err(format!("names protocol {:?}: ttrpc is spoken", self.protocol));
        }
        match self.address.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Path::new(path)),
            _ => Err(format!("names address {:?}: it is no Unix socket", self.address)),
        }
    }
}

/// Our shim's file name.
pub const OURS: &str = "containerd-shim-tare-v2";

/// The shim of a runtime: `io.containerd.runc.v2` is the program `containerd-shim-runc-v2`, looked up in PATH and beside
/// this program; an absolute path is itself. Where containerd's own shim is not installed, ours serves its name too:
/// it takes the same options, and clients name it by default.
///
/// # Errors
/// The name is no runtime's, or there is no such program.
pub fn binary(runtime: &str) -> Result<PathBuf, Error> {
    let refused = |why: &str| Error::InvalidArgument(format!("runtime {runtime:?}: {why}"));
    if runtime.starts_with('/') {
        return Ok(PathBuf::from(runtime));
    }
    if runtime.contains('/') {
        return Err(refused("a path must be absolute"));
    }
    let parts: Vec<&str> = runtime.split('.').collect();
    let [.., name, version] = parts[..] else {
        return Err(refused("a name has the form io.containerd.NAME.VERSION"));
    };
    if name.is_empty() || version.is_empty() {
        return Err(refused("a name has the form io.containerd.NAME.VERSION"));
    }
    let program = format!("containerd-shim-{name}-{version}");
    find(&program).or_else(|| if runtime == "io.containerd.runc.v2" { find(OURS) } else { None }).ok_or_else(|| {
        Error::NotFound(format!("runtime {runtime:?} binary not installed {program:?}: file does not exist"))
    })
}

/// What a runtime's shim says of itself.
///
/// # Errors
/// There is no such shim, or it does not know.
pub async fn info(runtime: &str, options: Option<&Any>) -> Result<RuntimeInfo, Error> {
    let binary = binary(if runtime.is_empty() { "io.containerd.tare.v2" } else { runtime })?;
    let input = options.map(prost::Message::encode_to_vec).unwrap_or_default();
    let mut command = Command::new(&binary);
    command.arg("-info");
    let output = talk(command, input, &format!("running {} -info", binary.display()), DELETE).await?;
    let said = |what: &str| Error::Unknown(format!("running {} -info: {}", binary.display(), what.trim()));
    if !output.status.success() {
        return Err(said(&String::from_utf8_lossy(&output.stderr)));
    }
    RuntimeInfo::decode(output.stdout.as_slice()).map_err(|error| said(&format!("reading its answer: {error}")))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let folders = std::env::split_paths(&path).chain(beside);
    folders.map(|folder| folder.join(program)).find(|file| file.is_absolute() && is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_dialects_of_the_answer_are_told_apart() {
        let address = "unix:///run/containerd/s/0a1b".to_owned();
        let endpoint = |version| Endpoint { version, address: address.clone(), protocol: "ttrpc".into() };
        let protobuf =
            BootstrapResult { version: 3, address: address.clone(), protocol: "ttrpc".into(), ..Default::default() };
        assert_eq!(Endpoint::parse(&protobuf.encode_to_vec()), Ok(endpoint(3)));
        let json = format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#);
        assert_eq!(Endpoint::parse(json.as_bytes()), Ok(endpoint(3)));
        assert_eq!(Endpoint::parse(address.as_bytes()), Ok(endpoint(2)));
        assert_eq!(Endpoint::parse(format!("{address}\n").as_bytes()), Ok(endpoint(2)));
    }

    #[test]
    fn an_answer_that_leads_nowhere_is_refused() {
        for (answer, why) in [
            ("", "is empty"),
            ("panic: oh no", "names address \"panic: oh no\": it is no Unix socket"),
            ("vsock://3:1024", "names address \"vsock://3:1024\": it is no Unix socket"),
            (
                r#"{"version":4,"address":"unix:///a","protocol":"ttrpc"}"#,
                "names version 4 of the Task API: 2 and 3 are spoken",
            ),
            (r#"{"version":3,"address":"unix:///a","protocol":"grpc"}"#, "names protocol \"grpc\": ttrpc is spoken"),
        ] {
            assert_eq!(Endpoint::parse(answer.as_bytes()), Err(why.to_owned()), "{answer}");
        }
    }

    #[test]
    fn a_runtime_names_its_program() {
        assert_eq!(binary("/opt/my-shim").unwrap(), Path::new("/opt/my-shim"));
        for (runtime, text) in [
            ("", "runtime \"\": a name has the form io.containerd.NAME.VERSION"),
            ("runc", "runtime \"runc\": a name has the form io.containerd.NAME.VERSION"),
            ("io.containerd.", "runtime \"io.containerd.\": a name has the form io.containerd.NAME.VERSION"),
            ("./a/b.v2", "runtime \"./a/b.v2\": a path must be absolute"),
        ] {
            let Err(Error::InvalidArgument(said)) = binary(runtime) else { panic!("{runtime}") };
            assert_eq!(said, text);
        }
        let Err(Error::NotFound(said)) = binary("io.containerd.no-such.v7") else { panic!() };
        assert_eq!(
            said,
            "runtime \"io.containerd.no-such.v7\" binary not installed \"containerd-shim-no-such-v7\": file does not exist"
        );
    }
}
