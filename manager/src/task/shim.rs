//! A shim that serves a bundle, as long as it answers: started, found again, called, asked to clean up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::runc::v1::Options;
use tare_proto::ttrpc;
use tare_proto::ttrpc::client::Client;

use super::bundle::Bundle;
use super::log::Log;
use super::start::{self, Caller, Daemon, Endpoint};
use crate::error::{Doing as _, Error};
use crate::names::{Id, Namespace};

/// A shim that does not take a connection and answer within it, at our start, is taken for dead. As containerd's.
const LOAD: Duration = Duration::from_secs(5);
const OPTIONS: &str = "containerd.runc.v1.Options";
const BINARY: &str = "shim-binary-path";
const SANDBOX: &str = "sandbox";

/// What `connect` finds of a shim that an earlier daemon started.
///
/// # Errors
/// As `connect`; `Unavailable` it took too long.
pub async fn found<T>(connect: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Err(Error::Unavailable(format!("no answer within {} s", LOAD.as_secs())));
    tokio::time::timeout(LOAD, connect).await.unwrap_or_else(late)
}

pub struct Shim {
    pub namespace: Namespace,
    pub id: Id,
    pub bundle: Bundle,
    pub binary: PathBuf,
    pub endpoint: Endpoint,
    client: Client,
    _log: Log,
}

impl Shim {
    /// Runs the shim's `start` and connects to what it tells.
    ///
    /// # Errors
    /// The shim's, or nobody listens where it says.
    pub async fn launch(
        daemon: &Daemon,
        namespace: &Namespace,
        id: &Id,
        binary: &Path,
        bundle: &Bundle,
        options: &Any,
    ) -> Result<Shim, Error> {
        let log = Log::follow(&bundle.path, namespace.as_str(), id.as_str())?;
        let caller = Caller { daemon, binary, namespace, id, bundle: &bundle.path };
        remember(&bundle.path, BINARY, &binary.display().to_string())?;
        let endpoint = caller.start(Some(options)).await?;
        endpoint.save(&bundle.path)?;
        Shim::connect(namespace, id, bundle.clone(), binary.to_owned(), endpoint, log).await
    }

    /// Lets a sandbox's shim serve one more bundle: nothing is started.
    ///
    /// # Errors
    /// It does not listen any more.
    pub async fn join(sandbox: &Shim, namespace: &Namespace, id: &Id, bundle: &Bundle) -> Result<Shim, Error> {
        let log = Log::follow(&bundle.path, namespace.as_str(), id.as_str())?;
        remember(&bundle.path, BINARY, &sandbox.binary.display().to_string())?;
        remember(&bundle.path, SANDBOX, sandbox.id.as_str())?;
        sandbox.endpoint.save(&bundle.path)?;
        let (binary, endpoint) = (sandbox.binary.clone(), sandbox.endpoint.clone());
        Shim::connect(namespace, id, bundle.clone(), binary, endpoint, log).await
    }

    /// Connects to the shim that an earlier daemon left with this bundle.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn load(namespace: &Namespace, id: &Id, bundle: &Bundle) -> Result<Shim, Error> {
        let endpoint = Endpoint::load(&bundle.path)?;
        let log = Log::follow(&bundle.path, namespace.as_str(), id.as_str())?;
        Shim::connect(namespace, id, bundle.clone(), recall(&bundle.path), endpoint, log).await
    }

    async fn connect(
        namespace: &Namespace,
        id: &Id,
        bundle: Bundle,
        binary: PathBuf,
        endpoint: Endpoint,
        log: Log,
    ) -> Result<Shim, Error> {
        let path = endpoint.path().map_err(|why| Error::Unimplemented(format!("the shim of {id} {why}")))?;
        let client =
            Client::connect(path).await.doing(|| format!("connecting to the shim of {id} at {}", path.display()))?;
        Ok(Shim { namespace: namespace.clone(), id: id.clone(), bundle, binary, endpoint, client, _log: log })
    }

    /// # Errors
    /// The shim's, or `Unavailable` when it is lost.
    pub async fn call<R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Error> {
        self.client.call(service, method, request, self.namespace.as_str()).await.map_err(from_shim)
    }

    pub fn is_lost(&self) -> bool {
        self.client.is_lost()
    }

    /// Returns when the shim is gone.
    pub async fn lost(&self) {
        self.client.lost().await;
    }

    /// The program, for cleaning up when the shim is gone.
    pub fn caller<'a>(&'a self, daemon: &'a Daemon) -> Caller<'a> {
        let (binary, bundle) = (&self.binary, &self.bundle.path);
        Caller { daemon, binary, namespace: &self.namespace, id: &self.id, bundle }
    }
}

/// The options for the shim: where they leave it open, the runtime's root is ours and not an installed containerd's.
pub fn with_root(options: Option<Any>, root: &Path) -> Result<Any, Error> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(any::pack(OPTIONS, &Options { root: root.display().to_string(), ..Options::default() }));
    };
    let runc = any::unpack::<Options>(&options, OPTIONS)
        .map_err(|error| Error::InvalidArgument(format!("reading options of type {OPTIONS}: {error}")))?;
    Ok(match runc {
        Some(runc) if runc.root.is_empty() => any::pack(OPTIONS, &Options { root: root.display().to_string(), ..runc }),
        _ => options,
    })
}

fn remember(bundle: &Path, file: &str, text: &str) -> Result<(), Error> {
    let path = bundle.join(file);
    std::fs::write(&path, text).map_err(|error| Error::io(format!("writing {}", path.display()), &error))
}

/// The shim that a bundle was made with; ours if the file was not yet written.
pub fn recall(bundle: &Path) -> PathBuf {
    std::fs::read_to_string(bundle.join(BINARY)).map_or_else(|_| PathBuf::from(start::OURS), PathBuf::from)
}

/// A shim's refusal, in its words: clients look at them.
fn from_shim(error: ttrpc::Error) -> Error {
    Error::told(error.code, &error.message)
}

#[cfg(test)]
mod tests {
    use tare_proto::ttrpc::Code;

    use super::*;

    #[test]
    fn a_shims_words_reach_the_client_once() {
        for text in ["container not created: not found", "container not created"] {
            let error = from_shim(ttrpc::Error::new(Code::NotFound, text));
            assert_eq!(error, Error::NotFound("container not created".into()));
            assert_eq!(error.to_string(), "container not created: not found");
        }
        let other = from_shim(ttrpc::Error { code: 2, message: "OCI runtime create failed: no".into() });
        assert_eq!(other, Error::Unknown("OCI runtime create failed: no".into()));
    }
}
