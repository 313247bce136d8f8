//! The sandboxes that were made, by the shims that hold them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use prost_types::{Any, Timestamp};
use tare_proto::any;
use tare_proto::containerd::runtime::sandbox::v1 as pb;
use tare_proto::containerd::types::{Metric, Mount, Platform};
use tare_proto::runtime::v1::PodSandboxConfig;

use crate::error::Error;
use crate::names::{Id, Namespace};
use crate::task::{Bundle, Bundles, Caller, Daemon, Shim, Table, binary, found, recall, with_root};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Clones share them.
#[derive(Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

struct Inner {
    daemon: Daemon,
    bundles: Bundles,
    /// Where the runtime keeps its state, unless a client says otherwise.
    runtime_root: PathBuf,
    table: Table<Shim>,
}

/// What a sandbox is made of.
pub struct Creation {
    /// `io.containerd.tare.v2`, or the shim's absolute path.
    pub runtime: String,
    /// The runtime's.
    pub options: Option<Any>,
    /// config.json, for shims that want one.
    pub spec: Option<Vec<u8>>,
    pub rootfs: Vec<Mount>,
    /// What the sandbox is to be: the kubelet's `runtime.v1.PodSandboxConfig`.
    pub config: Option<Any>,
    /// Empty: the host's network.
    pub netns: String,
    pub annotations: HashMap<String, String>,
}

/// A sandbox that lives.
pub struct Started {
    /// Whose namespaces are the sandbox's.
    pub pid: u32,
    pub at: Option<Timestamp>,
}

impl Sandboxes {
    pub fn new(daemon: Daemon, bundles: Bundles, runtime_root: PathBuf) -> Sandboxes {
        Sandboxes { inner: Arc::new(Inner { daemon, bundles, runtime_root, table: Table::default() }) }
    }

    /// Starts a shim and lets it make the sandbox.
    ///
    /// # Errors
    /// There is one of that name, there is no such runtime, or the shim refused. Then nothing is left of it.
    pub async fn create(&self, namespace: &Namespace, id: &Id, creation: Creation) -> Result<(), Error> {
        let binary = binary(&creation.runtime)?;
        let name = self.inner.table.take(namespace, id, "sandbox")?;
        let bundle = self.inner.bundles.create(namespace, id, creation.spec.as_deref())?;
        if let Some(gid) = group_of_root(creation.config.as_ref())
            && let Err(error) = bundle.admit(gid)
        {
            remove(namespace, id, &bundle);
            return Err(error);
        }
        match self.launch(namespace, id, &binary, &bundle, creation).await {
            Ok(shim) => {
                let shim = Arc::new(shim);
                name.give(shim.clone());
                self.watch(shim);
                Ok(())
            }
            Err(error) => {
                let caller =
                    Caller { daemon: &self.inner.daemon, binary: &binary, namespace, id, bundle: &bundle.path };
                if bundle.path.join("bootstrap.json").exists() {
                    clean(&caller).await;
                }
                remove(namespace, id, &bundle);
                Err(error)
            }
        }
    }

    /// # Errors
    /// `NotFound`, or the shim's; then the sandbox is gone.
    pub async fn start(&self, namespace: &Namespace, id: &Id) -> Result<Started, Error> {
        let shim = self.get(namespace, id)?;
        let request = pb::StartSandboxRequest { sandbox_id: id.to_string() };
        match call::<pb::StartSandboxResponse>(&shim, "StartSandbox", &request).await {
            Ok(answer) => Ok(Started { pid: answer.pid, at: answer.created_at }),
            Err(error) => {
                if let Err(left) = self.dismiss(&shim).await {
                    tracing::warn!(%namespace, %id, "{left}");
                }
                Err(error)
            }
        }
    }

    /// # Errors
    /// `NotFound`, or the shim's.
    pub async fn platform(&self, namespace: &Namespace, id: &Id) -> Result<Platform, Error> {
        let request = pb::PlatformRequest { sandbox_id: id.to_string() };
        let answer: pb::PlatformResponse = call(&*self.get(namespace, id)?, "Platform", &request).await?;
        Ok(answer.platform.unwrap_or_default())
    }

    /// Ends what runs in it. One that is gone is stopped.
    ///
    /// # Errors
    /// The shim's.
    pub async fn stop(&self, namespace: &Namespace, id: &Id, timeout_secs: u32) -> Result<(), Error> {
        let Ok(shim) = self.get(namespace, id) else { return Ok(()) };
        let request = pb::StopSandboxRequest { sandbox_id: id.to_string(), timeout_secs };
        match call::<pb::StopSandboxResponse>(&shim, "StopSandbox", &request).await {
            Ok(_) | Err(Error::NotFound(_) | Error::Unavailable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How it ends, once it does.
    ///
    /// # Errors
    /// `NotFound`, or the shim's.
    pub async fn wait(&self, namespace: &Namespace, id: &Id) -> Result<pb::WaitSandboxResponse, Error> {
        let request = pb::WaitSandboxRequest { sandbox_id: id.to_string() };
        call(&*self.get(namespace, id)?, "WaitSandbox", &request).await
    }

    /// # Errors
    /// `NotFound`, or the shim's.
    pub async fn status(
        &self,
        namespace: &Namespace,
        id: &Id,
        verbose: bool,
    ) -> Result<pb::SandboxStatusResponse, Error> {
        let request = pb::SandboxStatusRequest { sandbox_id: id.to_string(), verbose };
        call(&*self.get(namespace, id)?, "SandboxStatus", &request).await
    }

    /// # Errors
    /// `NotFound`, or the shim's.
    pub async fn metrics(&self, namespace: &Namespace, id: &Id) -> Result<Option<Metric>, Error> {
        let request = pb::SandboxMetricsRequest { sandbox_id: id.to_string() };
        let answer: pb::SandboxMetricsResponse = call(&*self.get(namespace, id)?, "SandboxMetrics", &request).await?;
        Ok(answer.metrics)
    }

    /// Ends the sandbox with its shim.
    ///
    /// # Errors
    /// `NotFound`, or the shim's; then it is still there.
    pub async fn shutdown(&self, namespace: &Namespace, id: &Id) -> Result<(), Error> {
        let shim = self.get(namespace, id)?;
        self.dismiss(&shim).await
    }

    /// Where the sandbox's tasks are served, in containerd's form: protocol and address; and the version of the Task API.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn endpoint(&self, namespace: &Namespace, id: &Id) -> Result<(String, u32), Error> {
        let endpoint = &self.get(namespace, id)?.endpoint;
        let protocol = if endpoint.protocol.is_empty() { "ttrpc" } else { &endpoint.protocol };
        Ok((format!("{protocol}+{}", endpoint.address), endpoint.version.unsigned_abs()))
    }

    /// The shim for a task of this sandbox: one that serves sandboxes takes tasks without being started for them, which
    /// version 3 of the Task API stands for.
    pub(crate) fn shim(&self, namespace: &Namespace, id: &Id) -> Option<Arc<Shim>> {
        self.inner.table.get(namespace, id).filter(|shim| shim.endpoint.version >= 3)
    }

    /// Finds the sandboxes that an earlier daemon left, and cleans up after those whose shim is gone.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub async fn recover(&self) -> Result<(), Error> {
        let mut loads = tokio::task::JoinSet::new();
        for (namespace, id, bundle) in self.inner.bundles.found()? {
            let sandboxes = self.clone();
            loads.spawn(async move { sandboxes.load(namespace, id, bundle).await });
        }
        loads.join_all().await;
        Ok(())
    }

    fn get(&self, namespace: &Namespace, id: &Id) -> Result<Arc<Shim>, Error> {
        self.inner.table.get(namespace, id).ok_or_else(|| Error::NotFound(format!("sandbox {id}")))
    }

    async fn launch(
        &self,
        namespace: &Namespace,
        id: &Id,
        binary: &std::path::Path,
        bundle: &Bundle,
        creation: Creation,
    ) -> Result<Shim, Error> {
        let options = with_root(creation.options, &self.inner.runtime_root)?;
        let shim = Shim::launch(&self.inner.daemon, namespace, id, binary, bundle, &options).await?;
        let request = pb::CreateSandboxRequest {
            sandbox_id: id.to_string(),
            bundle_path: bundle.path.display().to_string(),
            rootfs: creation.rootfs,
            options: creation.config,
            netns_path: creation.netns,
            annotations: creation.annotations,
        };
        match call::<pb::CreateSandboxResponse>(&shim, "CreateSandbox", &request).await {
            Ok(_) => Ok(shim),
            Err(error) => {
                give_up(&shim).await;
                Err(error)
            }
        }
    }

    async fn dismiss(&self, shim: &Arc<Shim>) -> Result<(), Error> {
        shut_down(shim).await?;
        self.inner.table.forget(&shim.namespace, &shim.id, shim);
        shim.bundle.remove()
    }

    async fn load(&self, namespace: Namespace, id: Id, bundle: Bundle) {
        let connect = async {
            wait_for_address(&bundle.path).await;
            let shim = Shim::load(&namespace, &id, &bundle).await?;
            let request = pb::PingRequest { sandbox_id: id.to_string() };
            match call::<pb::PingResponse>(&shim, "PingSandbox", &request).await {
                Ok(_) => Ok(shim),
                // It lives and has no such sandbox: a making that was cut short. Nobody else would ever end it.
                Err(error) => {
                    give_up(&shim).await;
                    Err(error)
                }
            }
        };
        match found(connect).await {
            Ok(shim) => {
                let shim = Arc::new(shim);
                self.inner.table.put(&namespace, &id, shim.clone());
                self.watch(shim);
            }
            Err(error) => {
                tracing::warn!(%namespace, %id, "sandbox lost while the daemon was away: {error}");
                let (daemon, binary) = (&self.inner.daemon, recall(&bundle.path));
                clean(&Caller { daemon, binary: &binary, namespace: &namespace, id: &id, bundle: &bundle.path }).await;
                remove(&namespace, &id, &bundle);
            }
        }
    }

    /// Cleans up when the shim goes before the sandbox was shut down.
    fn watch(&self, shim: Arc<Shim>) {
        let sandboxes = self.clone();
        tokio::spawn(async move {
            shim.lost().await;
            let inner = &sandboxes.inner;
            if !inner.table.is_current(&shim.namespace, &shim.id, &shim) {
                return;
            }
            tracing::warn!(namespace = %shim.namespace, id = %shim.id, "lost the sandbox's shim");
            clean(&shim.caller(&inner.daemon)).await;
            remove(&shim.namespace, &shim.id, &shim.bundle);
            inner.table.forget(&shim.namespace, &shim.id, &shim);
        });
    }
}

/// A daemon that was killed while it started a shim leaves that start under way: it ends with the shim's address in the
/// bundle, a moment later.
async fn wait_for_address(bundle: &Path) {
    const PATIENCE: Duration = Duration::from_secs(1);
    const AGAIN: Duration = Duration::from_millis(10);
    let there = || ["bootstrap.json", "address"].iter().any(|file| bundle.join(file).exists());
    let wait = async {
        while !there() {
            tokio::time::sleep(AGAIN).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, wait).await; // then it was killed before it could start one
}

/// The host's group for group 0 of a pod with ids of its own.
fn group_of_root(config: Option<&Any>) -> Option<u32> {
    let pod: PodSandboxConfig = any::unpack(config?, "runtime.v1.PodSandboxConfig").ok()??;
    let users = pod.linux?.security_context?.namespace_options?.userns_options?;
    users.gids.iter().find(|mapping| mapping.container_id == 0).map(|mapping| mapping.host_id)
}

async fn call<R: Message + Default>(shim: &Shim, method: &str, request: &impl Message) -> Result<R, Error> {
    shim.call(SERVICE, method, request).await
}

/// Asks the shim to end with its sandbox. The connection may close before the answer.
async fn shut_down(shim: &Shim) -> Result<(), Error> {
    let request = pb::ShutdownSandboxRequest { sandbox_id: shim.id.to_string() };
    let doing = || format!("shutting down sandbox {}", shim.id);
    match tokio::time::timeout(SHUTDOWN, call::<pb::ShutdownSandboxResponse>(shim, "ShutdownSandbox", &request)).await {
        Ok(Ok(_) | Err(Error::Unavailable(_))) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Unavailable(format!("{}: no answer within {} s", doing(), SHUTDOWN.as_secs()))),
    }
}

/// Ends a shim without its sandbox; the error that led here matters more than what fails now.
async fn give_up(shim: &Shim) {
    if let Err(left) = shut_down(shim).await {
        tracing::warn!(namespace = %shim.namespace, id = %shim.id, "{left}");
    }
}

/// Lets the program of a shim that is gone remove what it left.
async fn clean(caller: &Caller<'_>) {
    if let Err(error) = caller.delete().await {
        tracing::warn!(namespace = %caller.namespace, id = %caller.id, "{error}");
    }
}

fn remove(namespace: &Namespace, id: &Id, bundle: &Bundle) {
    if let Err(error) = bundle.remove() {
        tracing::error!(%namespace, %id, "{error}");
    }
}
