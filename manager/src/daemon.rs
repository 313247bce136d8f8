//! The daemon's life: folders, stores, sockets, recovery, service, end. Containers outlive it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use tare_proto::containerd::services::events::v1 as pb;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::{Certificate, Endpoint, Identity, Server, ServerTlsConfig, Uri};

use crate::authority::Lenient;
use crate::caretaker;
use crate::cgroup;
use crate::collector::Collector;
use crate::config::{Config, Level, Sharing};
use crate::containers::Containers;
use crate::content::Content;
use crate::cri::Cri;
use crate::debug::{Debug, SetLevel};
use crate::error::{Doing as _, Error, Result};
use crate::event::{Exchange, forward};
use crate::identity;
use crate::images::Images;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::networks::Networks;
use crate::sandbox::{Records, Sandboxes};
use crate::service::Services;
use crate::snapshot::{Remote, Snapshots};
use crate::store::Store;
use crate::streaming::Streams;
use crate::systemd::{self, Passed};
use crate::task::{self, Bundles, Tasks};
use crate::transfer::Transfers;

/// What is under way when the daemon is told to end has this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A folder, the database or a socket cannot be had.
pub fn run(config: &Config, set_level: SetLevel) -> Result<()> {
    let passed = Passed::take_all()?;
    settle_in(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tared")
        .build()
        .doing(|| "starting threads".into())?;
    let outcome = runtime.block_on(serve(config, passed, set_level));
    runtime.shutdown_timeout(Duration::from_secs(1)); // threads that only wait for a client's next read
    outcome
}

/// Goes where the configuration wants the daemon, before it has threads or starts anything.
fn settle_in(config: &Config) -> Result<()> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if config.oom_score != 0
        && let Err(error) = fs::write(SCORE, config.oom_score.to_string())
    {
        tracing::warn!("setting oom_score to {}: {error}", config.oom_score); // lowering it takes a capability
    }
    if config.cgroup.path.is_empty() { Ok(()) } else { cgroup::join(&config.cgroup.path) }
}

async fn serve(config: &Config, mut passed: Passed, set_level: SetLevel) -> Result<()> {
    for (path, mode) in [(&config.root, 0o711), (&config.state, 0o711)] {
        folder(path, mode)?;
    }
    let metrics = Metrics::default();
    let services = assemble(config, &metrics)?;
    let _state = lock(&config.state)?;
    services.transfers.recover()?;
    let cri = Cri::new(services.clone(), config.cri.clone())?;
    // Shims send what they kept for us as soon as they can, and bundles that are found are asked at once.
    let events = Socket::bind(&config.ttrpc.address, 0o600, None, &mut passed)?;
    let mut beside = JoinSet::new(); // what ends with the daemon; dropping it does that
    beside.spawn(forward::serve(events.listener, services.events.clone()));
    services.sandboxes.recover().await?;
    let caretaker = services.caretaker();
    let seen = caretaker.watch()?;
    services.tasks.recover().await?;
    cri.recover().await?;
    caretaker.sweep().await;
    services.networks.restore().await?; // before anything that needs them is started again
    let streaming = cri.serve_streams().await?;
    tokio::spawn(caretaker.run(seen));
    beside.spawn(services.collector.clone().run());
    beside.spawn(services.restarts(config.plugins.restart.interval.0).run());
    let debug = watch(config, &metrics, set_level, &mut passed, &mut beside).await?;
    let routes = cri.add_to(services.routes());
    if !config.grpc.tcp_address.is_empty() {
        beside.spawn(on_port(config, &metrics, routes.clone()).await?);
    }
    // The last one: whoever can connect finds all the others too.
    let grpc = Socket::bind(&config.grpc.address, 0o660, Some((config.grpc.uid, config.grpc.gid)), &mut passed)?;
    let mut ends = Ends::new()?;
    let server = Server::builder().layer(metrics).add_routes(routes);
    let served =
        server.serve_with_incoming(UnixListenerStream::new(grpc.listener).map(|client| client.map(Lenient::new)));
    tracing::info!(address = %config.grpc.address.display(), version = crate::VERSION, "serving");
    systemd::notify("READY=1")?;
    let outcome = tokio::select! {
        served = served => served.map_err(|error| Error::Internal(format!("serving: {error}"))),
        () = ends.told() => Ok(()),
    };
    tracing::info!("ending; containers go on");
    streaming.abort();
    systemd::notify("STOPPING=1")?;
    if tokio::time::timeout(PATIENCE, services.settle()).await.is_err() {
        tracing::warn!("a request was still under way after {} s", PATIENCE.as_secs());
    }
    drop(beside);
    for address in [grpc.own, events.own].into_iter().chain(debug).flatten() {
        if let Err(error) = fs::remove_file(&address) {
            tracing::warn!("removing {}: {error}", address.display());
        }
    }
    outcome
}

/// The signals that tell us to end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> Result<Ends> {
        let wait = |kind| signal(kind).doing(|| "waiting for signals".into());
        Ok(Ends { terminate: wait(SignalKind::terminate())?, interrupt: wait(SignalKind::interrupt())? })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves metrics, and on a socket what an operator may change. Returns the socket's path, if there is one of ours.
async fn watch(
    config: &Config,
    metrics: &Metrics,
    set_level: SetLevel,
    passed: &mut Passed,
    beside: &mut JoinSet<()>,
) -> Result<Option<Option<PathBuf>>> {
    let address = &config.metrics.address;
    if !address.is_empty() {
        let listener = TcpListener::bind(address).await.doing(|| format!("binding metrics.address {address}"))?;
        beside.spawn(Debug { metrics: metrics.clone(), set_level: None }.on_port(listener));
    }
    if config.debug.address.as_os_str().is_empty() {
        return Ok(None);
    }
    let socket = Socket::bind(&config.debug.address, 0o600, None, passed)?;
    beside.spawn(Debug { metrics: metrics.clone(), set_level: Some(set_level) }.on_socket(socket.listener));
    Ok(Some(socket.own))
}

/// The services on a port, for clients with a certificate of ours.
async fn on_port(config: &Config, metrics: &Metrics, routes: Routes) -> Result<impl Future<Output = ()> + use<>> {
    let (address, grpc) = (config.grpc.tcp_address.clone(), &config.grpc);
    let read = |path: &Path| fs::read(path).doing(|| format!("reading {}", path.display()));
    let identity = Identity::from_pem(read(&grpc.tcp_tls_cert)?, read(&grpc.tcp_tls_key)?);
    let authority = Certificate::from_pem(read(&grpc.tcp_tls_ca)?);
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(authority);
    let wrong = |error: tonic::transport::Error| {
        let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Error::InvalidArgument(format!("grpc.tcp_tls_ca, tcp_tls_cert, tcp_tls_key: {why}"))
    };
    let mut server = Server::builder().tls_config(tls).map_err(wrong)?.layer(metrics.clone());
    let listener = TcpListener::bind(&address).await.doing(|| format!("binding grpc.tcp_address {address}"))?;
    Ok(async move {
        let served = server.add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener));
        if let Err(error) = served.await {
            tracing::error!("serving on {address}: {error}");
        }
    })
}

/// The parts, wired. The database comes first: its lock keeps a second daemon off this root.
fn assemble(config: &Config, metrics: &Metrics) -> Result<Services> {
    let store = Store::open(&config.root.join("tared.db"))?;
    let content = Content::open(&config.root, store.clone())?;
    let content = match config.plugins.metadata.content_sharing_policy {
        Sharing::Shared => content,
        Sharing::Isolated => content.isolated(),
    };
    let proxies = config.proxy_plugins.iter().map(|(name, proxy)| Remote::new(name, &proxy.address));
    let snapshots = Snapshots::open(&config.root, store.clone())?.beside(proxies);
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
            metrics.clone(),
        ),
        images: Images::new(store.clone()),
        containers: Containers::new(store.clone()),
        leases: Leases::new(store.clone()),
        namespaces: Namespaces::new(store.clone()),
        networks: Networks::new(root, root.join(caretaker::FOLDERS), config.cri.cni.clone()),
        tasks: Tasks::new(about, bundles, runtime_root.clone(), events.clone(), sandboxes.clone()),
        sandboxes,
        sandbox_records: Records::new(store.clone()),
        streams: Streams::default(),
        transfers: Transfers::new(store.clone(), content.clone(), snapshots.clone())
            .verified_by(config.plugins.verifiers()),
        proxies: Arc::new(config.proxy_plugins.clone()),
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

/// A socket that we serve on.
struct Socket {
    listener: UnixListener,
    /// Its path, if it is ours to remove.
    own: Option<PathBuf>,
}

impl Socket {
    /// Binds it with its mode from the first moment on, unless the service manager did. One that nobody answers at is a
    /// dead daemon's, and replaced.
    fn bind(path: &Path, mode: u32, owner: Option<(u32, u32)>, passed: &mut Passed) -> Result<Socket> {
        let doing = || format!("binding {}", path.display());
        if let Some(listener) = passed.at(path) {
            listener.set_nonblocking(true).doing(doing)?;
            return Ok(Socket { listener: UnixListener::from_std(listener).doing(doing)?, own: None });
        }
        if let Some(above) = path.parent() {
            folder(above, 0o711)?;
        }
        if UnixStream::connect(path).is_ok() {
            return Err(Error::FailedPrecondition(format!("binding {}: somebody serves there", path.display())));
        }
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
        Ok(Socket { listener, own: Some(path.to_owned()) })
    }
}

/// Keeps a second daemon off a folder: it would take our tasks for its own. The lock ends with the file.
fn lock(state: &Path) -> Result<File> {
    let doing = || format!("locking {}", state.display());
    let file = File::options().write(true).create(true).truncate(false).open(state.join("lock")).doing(doing)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::FailedPrecondition(format!("{}: another daemon has it", doing()))),
        Err(TryLockError::Error(error)) => Err(Error::io(doing(), &error)),
    }
}

fn folder(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).doing(|| format!("making {}", path.display()))
}
