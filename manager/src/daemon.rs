//! The daemon's life: folders, stores, sockets, recovery, service, end. Containers outlive it.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use tare_proto::containerd::services::events::v1 as pb;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server, Uri};

use crate::authority::Lenient;
use crate::collector::Collector;
use crate::config::{Config, Level};
use crate::containers::Containers;
use crate::content::Content;
use crate::cri::Cri;
use crate::error::{Doing as _, Error, Result};
use crate::event::{Exchange, forward};
use crate::identity;
use crate::images::Images;
use crate::leases::Leases;
use crate::namespaces::Namespaces;
use crate::sandbox::{Records, Sandboxes};
use crate::service::Services;
use crate::snapshot::Snapshots;
use crate::store::Store;
use crate::streaming::Streams;
use crate::task::{self, Bundles, Tasks};
use crate::transfer::Transfers;

/// What is under way when the daemon is told to end has this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A folder, the database or a socket cannot be had.
pub fn run(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tared")
        .build()
        .doing(|| "starting threads".into())?;
    let outcome = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1)); // threads that only wait for a client's next read
    outcome
}

async fn serve(config: &Config) -> Result<()> {
    for (path, mode) in [(&config.root, 0o711), (&config.state, 0o711)] {
        folder(path, mode)?;
    }
    let services = assemble(config)?;
    let cri = Cri::new(services.clone(), config.cri.clone())?;
    // Shims send what they kept for us as soon as they can, and bundles that are found are asked at once.
    let events = bind(&config.ttrpc.address, 0o600, None)?;
    let forwarding = tokio::spawn(forward::serve(events, services.events.clone()));
    services.sandboxes.recover().await?;
    let caretaker = services.caretaker();
    let seen = caretaker.watch()?;
    services.tasks.recover().await?;
    cri.recover().await?;
    let streaming = cri.serve_streams().await?;
    tokio::spawn(caretaker.run(seen));
    let collecting = tokio::spawn(services.collector.clone().run());
    let restarting = tokio::spawn(services.restarts(config.plugins.restart.interval.0).run());
    let listener = bind(&config.grpc.address, 0o660, Some((config.grpc.uid, config.grpc.gid)))?;
    tracing::info!(address = %config.grpc.address.display(), version = crate::VERSION, "serving");

    let mut ends = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(|kind| signal(kind).doing(|| "waiting for signals".into()));
    let [terminate, interrupt] = &mut ends;
    let (terminate, interrupt) =
        (terminate.as_mut().map_err(|e| e.clone())?, interrupt.as_mut().map_err(|e| e.clone())?);
    let served = Server::builder()
        .add_routes(cri.add_to(services.routes()))
        .serve_with_incoming(UnixListenerStream::new(listener).map(|client| client.map(Lenient::new)));
    let outcome = tokio::select! {
        served = served => served.map_err(|error| Error::Internal(format!("serving: {error}"))),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("ending; containers go on");
    collecting.abort();
    streaming.abort();
    restarting.abort();
    if tokio::time::timeout(PATIENCE, services.settle()).await.is_err() {
        tracing::warn!("a request was still under way after {} s", PATIENCE.as_secs());
    }
    forwarding.abort();
    for address in [&config.grpc.address, &config.ttrpc.address] {
        if let Err(error) = fs::remove_file(address) {
            tracing::warn!("removing {}: {error}", address.display());
        }
    }
    outcome
}

/// The parts, wired. The database comes first: its lock keeps a second daemon off this root.
fn assemble(config: &Config) -> Result<Services> {
    let store = Store::open(&config.root.join("tared.db"))?;
    let content = Content::open(&config.root, store.clone())?;
    let snapshots = Snapshots::open(&config.root, store.clone())?;
    let events = Exchange::default();
    let sockets = config.state.join("s");
    folder(&sockets, 0o700)?;
    let about = task::Daemon {
        address: config.grpc.address.clone(),
        ttrpc: config.ttrpc.address.clone(),
        sockets,
        program: std::env::current_exe().doing(|| "looking for this program".into())?,
        debug: matches!(config.debug.level, Level::Trace | Level::Debug),
    };
    let (state, root, runtime_root) = (&config.state, &config.root, &config.runtime.root);
    let sandboxes = Bundles::open(state, root, task::SANDBOXES)?;
    let sandboxes = Sandboxes::new(about.clone(), sandboxes, runtime_root.clone());
    let bundles = Bundles::open(state, root, task::TASKS)?;
    Ok(Services {
        collector: Collector::new(
            store.clone(),
            content.clone(),
            snapshots.clone(),
            events.clone(),
            config.plugins.schedule(),
        ),
        images: Images::new(store.clone()),
        containers: Containers::new(store.clone()),
        leases: Leases::new(store.clone()),
        namespaces: Namespaces::new(store.clone()),
        tasks: Tasks::new(about, bundles, runtime_root.clone(), events.clone(), sandboxes.clone()),
        sandboxes,
        sandbox_records: Records::new(store.clone()),
        streams: Streams::default(),
        transfers: Transfers::new(store.clone(), content.clone(), snapshots.clone()),
        uuid: identity::of(&config.root)?,
        root: config.root.clone(),
        state: config.state.clone(),
        busy: Arc::default(),
        store,
        content,
        snapshots,
        events,
    })
}

/// Sends an event that is read from standard input, for a shim that cannot reach the ttrpc socket.
///
/// # Errors
/// Nobody serves at `address`, or the event is refused.
pub fn publish(address: &Path, topic: &str, namespace: &str) -> Result<()> {
    const LONGEST: u64 = 4 << 20;
    let mut bytes = Vec::new();
    io::stdin().take(LONGEST).read_to_end(&mut bytes).doing(|| "reading the event".into())?;
    let event = prost_types::Any::decode(bytes.as_slice())
        .map_err(|error| Error::InvalidArgument(format!("reading the event: {error}")))?;
    let mut request = tonic::Request::new(pb::PublishRequest { topic: topic.to_owned(), event: Some(event) });
    let header = namespace.parse().map_err(|_| Error::InvalidArgument(format!("namespace {namespace:?}")))?;
    request.metadata_mut().insert("containerd-namespace", header);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing(|| "starting".into())?.block_on(async {
        let failed =
            |error: &dyn std::fmt::Display| Error::Unavailable(format!("publishing to {}: {error}", address.display()));
        let path = address.to_owned();
        let channel = Endpoint::from_static("http://tared")
            .connect_with_connector(tower::service_fn(move |_: Uri| connect(path.clone())))
            .await
            .map_err(|error| failed(&error))?;
        let mut events = pb::events_client::EventsClient::new(channel);
        events.publish(request).await.map_err(|status| failed(&status.message()))?;
        Ok(())
    })
}

async fn connect(path: PathBuf) -> io::Result<TokioIo<tokio::net::UnixStream>> {
    tokio::net::UnixStream::connect(path).await.map(TokioIo::new)
}

/// Binds a socket with its mode from the first moment on. One that nobody answers at is a dead daemon's, and replaced.
fn bind(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<UnixListener> {
    if let Some(above) = path.parent() {
        folder(above, 0o711)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(Error::FailedPrecondition(format!("binding {}: somebody serves there", path.display())));
    }
    let doing = || format!("binding {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(doing(), &error)),
        _ => {}
    }
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777 & !mode));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.doing(doing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing(doing)?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).doing(doing)?;
    }
    Ok(listener)
}

fn folder(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).doing(|| format!("making {}", path.display()))
}
