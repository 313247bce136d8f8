//! Images in and out: each pair of a source and a destination is one call of [`Transfers`].
//!
//! [`Transfers`]: crate::transfer::Transfers

use std::time::Duration;

use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::transfer::v1 as pb;
use tare_proto::containerd::types::Platform as PlatformMessage;
use tare_proto::containerd::types::transfer as types;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Services, namespace, required};
use crate::error::{Doing as _, Error, Result as Answer};
use crate::names::Namespace;
use crate::registry::{Credentials, Options, Question, Secret};
use crate::snapshot::OVERLAY;
use crate::streaming::{Incoming, Outgoing, Stream};
use crate::transfer::{self, Export, Extra, Import, Names, Platform, Progress, Push, State, Stored, Transfers, Unpack};

const REGISTRY: &str = "containerd.types.transfer.OCIRegistry";
const STORE: &str = "containerd.types.transfer.ImageStore";
const IMPORT: &str = "containerd.types.transfer.ImageImportStream";
const EXPORT: &str = "containerd.types.transfer.ImageExportStream";
const PROGRESS: &str = "containerd.types.transfer.Progress";
const QUESTION: &str = "containerd.types.transfer.AuthRequest";
const ANSWER: &str = "containerd.types.transfer.AuthResponse";

/// When all is done, a client has this long to read how it went.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What is asked for.
enum Plan {
    Pull(transfer::Request),
    Push(Push),
    Import(Import, Stream),
    Export(Export, Stream),
    /// From a client and back to it, as it is.
    Echo(Stream, Stream),
    Tag(String, Names),
}

#[tonic::async_trait]
impl pb::transfer_server::Transfer for Services {
    /// Clients take the refusal of a pair as "not here" and do it themselves.
    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let (source, destination) =
            (required(request.source, "source")?, required(request.destination, "destination")?);
        let plan = self.plan(&namespace, &source, &destination)?;
        let watcher = request.options.map(|options| options.progress_stream).filter(|id| !id.is_empty());
        let watcher = watcher.map(|id| self.streams.take(namespace.as_str(), &id)).transpose()?;
        // If the client goes away, what waits for a network gives up; what is half done on disk is brought to an end.
        let (_wanted, transfers) = self.transfers.wanted();
        let services = self.clone();
        self.finish(async move { services.carry_out(namespace, plan, transfers, watcher).await }).await?;
        Ok(Response::new(()))
    }
}

impl Services {
    fn plan(&self, namespace: &Namespace, source: &Any, destination: &Any) -> Answer<Plan> {
        let stream = |id: &str| self.streams.take(namespace.as_str(), id);
        match (any::name(source), any::name(destination)) {
            (REGISTRY, STORE) => {
                let (registry, store) = (read::<types::OciRegistry>(source)?, read::<types::ImageStore>(destination)?);
                Ok(Plan::Pull(transfer::Request {
                    reference: registry.reference.clone(),
                    platforms: platforms(&store.platforms),
                    all_metadata: store.all_metadata,
                    most_manifests: store.manifest_limit as usize,
                    unpacks: unpacks(&store),
                    names: names(store),
                    registry: self.options(namespace, registry)?,
                }))
            }
            (STORE, REGISTRY) => {
                let (store, registry) = (read::<types::ImageStore>(source)?, read::<types::OciRegistry>(destination)?);
                Ok(Plan::Push(Push {
                    name: store.name,
                    reference: registry.reference.clone(),
                    platforms: platforms(&store.platforms),
                    registry: self.options(namespace, registry)?,
                }))
            }
            (IMPORT, STORE) => {
                let from = read::<types::ImageImportStream>(source)?;
                let store = read::<types::ImageStore>(destination)?;
                let import = Import {
                    platforms: platforms(&store.platforms),
                    unpacks: unpacks(&store),
                    compress: from.force_compress,
                    names: names(store),
                };
                Ok(Plan::Import(import, stream(&from.stream)?))
            }
            (STORE, EXPORT) => {
                let store = read::<types::ImageStore>(source)?;
                let to = read::<types::ImageExportStream>(destination)?;
                if let Some(prefix) = store.extra_references.iter().find(|extra| extra.is_prefix) {
                    return Err(Error::Unimplemented(format!("exporting all images that begin with {}", prefix.name)));
                }
                let own = Some(store.name).filter(|name| !name.is_empty());
                let platforms = match (to.all_platforms, platforms(&to.platforms)) {
                    (true, _) => Vec::new(),
                    (false, asked) if asked.is_empty() => vec![Platform::own()],
                    (false, asked) => asked,
                };
                let export = Export {
                    names: own.into_iter().chain(store.extra_references.into_iter().map(|extra| extra.name)).collect(),
                    platforms,
                    without_docker: to.skip_compatibility_manifest,
                    without_foreign: to.skip_non_distributable,
                };
                Ok(Plan::Export(export, stream(&to.stream)?))
            }
            (IMPORT, EXPORT) => {
                let from = read::<types::ImageImportStream>(source)?;
                let to = read::<types::ImageExportStream>(destination)?;
                Ok(Plan::Echo(stream(&from.stream)?, stream(&to.stream)?))
            }
            (STORE, STORE) => {
                let from = read::<types::ImageStore>(source)?;
                Ok(Plan::Tag(from.name, names(read::<types::ImageStore>(destination)?)))
            }
            (from, to) => Err(Error::Unimplemented(format!("transfer from {from} to {to}"))),
        }
    }

    fn options(&self, namespace: &Namespace, registry: types::OciRegistry) -> Answer<Options> {
        let resolver = registry.resolver.unwrap_or_default();
        if resolver.http_debug() != types::HttpDebug::Disabled {
            return Err(Error::Unimplemented(
                "resolver.http_debug: showing a client what is said to a registry".into(),
            ));
        }
        if !matches!(resolver.default_scheme.as_str(), "" | "http" | "https") {
            return Err(Error::InvalidArgument(format!("resolver.default_scheme {:?}", resolver.default_scheme)));
        }
        let credentials = match resolver.auth_stream.as_str() {
            "" => Credentials::None,
            id => Credentials::Asked(ask_client(self.streams.take(namespace.as_str(), id)?, registry.reference)),
        };
        let mut headers: Vec<(String, String)> = resolver.headers.into_iter().collect();
        headers.sort();
        Ok(Options {
            scheme: Some(resolver.default_scheme).filter(|scheme| !scheme.is_empty()),
            hosts: Some(resolver.host_dir).filter(|folder| !folder.is_empty()).map(Into::into),
            headers,
            credentials,
            ..Options::default()
        })
    }

    async fn carry_out(
        &self,
        namespace: Namespace,
        plan: Plan,
        transfers: Transfers,
        watcher: Option<Stream>,
    ) -> Answer<()> {
        let progress = Progress::default();
        let showing = watcher.map(|watcher| tokio::spawn(show(watcher.to_client, progress.clone())));
        let outcome = run(&namespace, plan, &transfers, &progress).await;
        progress.end();
        if let Some(showing) = showing {
            // A client that reads no more does not keep the answer from others.
            let _ = tokio::time::timeout(LAST_WORDS, showing).await;
        }
        if outcome.is_err() {
            self.collector.after(false).await?; // what came before the failure
        }
        for Stored { image, new } in outcome? {
            let (name, labels) = (image.name, image.labels);
            if new {
                self.tell(&namespace, "/images/create", &images::ImageCreate { name, labels });
            } else {
                self.tell(&namespace, "/images/update", &images::ImageUpdate { name, labels });
            }
        }
        Ok(())
    }
}

/// Does it; gives the names that stand for something now.
async fn run(namespace: &Namespace, plan: Plan, transfers: &Transfers, progress: &Progress) -> Answer<Vec<Stored>> {
    let (of, own, told) = (namespace.clone(), transfers.clone(), progress.clone());
    let work: Box<dyn FnOnce() -> Answer<Vec<Stored>> + Send> = match plan {
        Plan::Pull(pull) => return transfers.pull(namespace, &pull, progress).await,
        Plan::Push(push) => return transfers.push(namespace, &push, progress).await.map(|()| Vec::new()),
        Plan::Import(import, stream) => Box::new(move || own.import(&of, &import, Incoming::new(stream), &told)),
        Plan::Export(export, stream) => {
            Box::new(move || own.export(&of, &export, Outgoing::new(stream)).map(|()| Vec::new()))
        }
        Plan::Echo(from, to) => Box::new(move || {
            let copied = std::io::copy(&mut Incoming::new(from), &mut Outgoing::new(to));
            copied.map(|_| Vec::new()).doing(|| "passing a stream on".into())
        }),
        Plan::Tag(name, names) => Box::new(move || own.tag(&of, &name, &names)),
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

async fn show(client: mpsc::Sender<Any>, progress: Progress) {
    while let Some(states) = progress.next().await {
        for State { event, name, parent, done, total, what } in states {
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let shown = types::Progress {
                event,
                name,
                parents: parent.into_iter().collect(),
                progress: number(done),
                total: number(total),
                desc: what,
            };
            if client.send(any::pack(PROGRESS, &shown)).await.is_err() {
                return; // nobody looks any more; the transfer goes on
            }
        }
    }
}

/// Passes questions on to a client that answers them one after the other, as long as anybody may ask.
fn ask_client(mut client: Stream, reference: String) -> mpsc::Sender<Question> {
    let (ask, mut asked) = mpsc::channel::<Question>(1);
    tokio::spawn(async move {
        while let Some(Question { host, challenges, answer }) = asked.recv().await {
            let question = types::AuthRequest { host, reference: reference.clone(), wwwauthenticate: challenges };
            if client.to_client.send(any::pack(QUESTION, &question)).await.is_err() {
                return; // whoever asks is told that there is no secret
            }
            let Some(said) = client.from_client.recv().await else { return };
            let said = any::unpack::<types::AuthResponse>(&said, ANSWER).ok().flatten().unwrap_or_default();
            let secret = match said.auth_type() {
                types::AuthType::None => Secret::None,
                types::AuthType::Credentials => Secret::Basic { username: said.username, password: said.secret },
                types::AuthType::Refresh if said.secret.is_empty() => Secret::None,
                types::AuthType::Refresh => Secret::Refresh(said.secret),
                types::AuthType::Header => Secret::Header(said.secret),
            };
            let _ = answer.send(secret); // whoever asked may have given up
        }
    });
    ask
}

fn read<M: prost::Message + Default>(message: &Any) -> Answer<M> {
    M::decode(message.value.as_slice())
        .map_err(|error| Error::InvalidArgument(format!("reading {}: {error}", any::name(message))))
}

fn platform(message: &PlatformMessage) -> Platform {
    Platform { os: message.os.clone(), architecture: message.architecture.clone(), variant: message.variant.clone() }
}

fn platforms(messages: &[PlatformMessage]) -> Vec<Platform> {
    messages.iter().map(platform).collect()
}

fn names(store: types::ImageStore) -> Names {
    let extra = |extra: types::ImageReference| Extra {
        name: extra.name,
        is_prefix: extra.is_prefix,
        allow_overwrite: extra.allow_overwrite,
        add_digest: extra.add_digest,
        skip_named_digest: extra.skip_named_digest,
    };
    Names { name: store.name, extra: store.extra_references.into_iter().map(extra).collect(), labels: store.labels }
}

fn unpacks(store: &types::ImageStore) -> Vec<Unpack> {
    let unpack = |unpack: &types::UnpackConfiguration| {
        let snapshotter = match unpack.snapshotter.as_str() {
            "" => OVERLAY,
            other => other,
        };
        let platform = unpack.platform.as_ref().map_or_else(Platform::own, platform);
        Unpack { platform, snapshotter: snapshotter.to_owned() }
    };
    store.unpacks.iter().map(unpack).collect()
}
