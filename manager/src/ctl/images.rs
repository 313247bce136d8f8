//! `tarectl pull`, `images`, `tag`, `rmi`.

use anyhow::{Context as _, Result, bail};
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::content::v1::ReadContentRequest;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::services::streaming::v1::StreamInit;
use tare_proto::containerd::services::transfer::v1 as transfer;
use tare_proto::containerd::types::transfer as types;
use tare_proto::containerd::types::{Descriptor, Platform as PlatformMessage};
use tokio_stream::StreamExt as _;

use super::client::{Client, said};
use super::{Output, size, table};
use crate::names::Digest;
use crate::registry::Reference;
use crate::snapshot::OVERLAY;
use crate::transfer::{Described, Document, Platform};

#[derive(clap::Args)]
pub struct PullArgs {
    /// Speak plain HTTP to the registry (always so on this machine)
    #[arg(long)]
    plain_http: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(clap::Args)]
pub struct TagArgs {
    image: String,
    name: String,
}

#[derive(clap::Args)]
pub struct RmiArgs {
    #[arg(required = true)]
    images: Vec<String>,
}

/// An image that is here, as far as running it needs.
pub struct Local {
    pub name: String,
    /// The snapshot of its top layer.
    pub chain: String,
    pub config: Vec<u8>,
}

pub async fn pull(client: &Client, args: &PullArgs) -> Result<i32> {
    let name = Reference::complete(&args.image)?;
    fetch(client, &name, args.plain_http, !args.quiet).await?;
    println!("{name}");
    Ok(0)
}

/// Has the daemon pull an image, and shows a bar for each layer.
async fn fetch(client: &Client, name: &str, plain_http: bool, show: bool) -> Result<()> {
    let stream = format!("pull-{}", std::process::id());
    let showing = if show { Some(show_progress(client, &stream).await?) } else { None };
    let own = Platform::own();
    let platform =
        PlatformMessage { os: own.os, architecture: own.architecture, variant: own.variant, os_version: String::new() };
    let resolver = types::RegistryResolver {
        default_scheme: if plain_http { "http".into() } else { String::new() },
        ..Default::default()
    };
    let registry = types::OciRegistry { reference: name.into(), resolver: Some(resolver) };
    let platforms = vec![platform.clone()];
    let unpacks = vec![types::UnpackConfiguration { platform: Some(platform), snapshotter: OVERLAY.into() }];
    let store = types::ImageStore { name: name.into(), platforms, all_metadata: true, unpacks, ..Default::default() };
    let request = transfer::TransferRequest {
        source: Some(any::pack("containerd.types.transfer.OCIRegistry", &registry)),
        destination: Some(any::pack("containerd.types.transfer.ImageStore", &store)),
        options: Some(transfer::TransferOptions { progress_stream: if show { stream } else { String::new() } }),
    };
    let answer = client.transfer().transfer(client.request(request)).await;
    if let Some(showing) = showing {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), showing).await; // the last bars, or an error's silence
    }
    answer.map_err(said)?;
    Ok(())
}

/// Opens a stream for progress and draws what arrives.
async fn show_progress(client: &Client, id: &str) -> Result<tokio::task::JoinHandle<()>> {
    let init: Any = any::pack("containerd.services.streaming.v1.StreamInit", &StreamInit { id: id.into() });
    let (keep_open, messages) = tokio::sync::mpsc::channel(1);
    keep_open.send(init).await.context("opening a stream")?;
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut incoming = client.streaming().stream(client.request(outgoing)).await.map_err(said)?.into_inner();
    incoming.message().await.map_err(said)?; // "ready"
    Ok(tokio::spawn(async move {
        let _keep_open = keep_open;
        let bars = indicatif::MultiProgress::new();
        let style = indicatif::ProgressStyle::with_template(
            "{prefix:14} {msg:12} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}",
        );
        let style = style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        let mut known: std::collections::HashMap<String, indicatif::ProgressBar> = std::collections::HashMap::new();
        while let Some(Ok(message)) = incoming.next().await {
            let Ok(Some(progress)) = any::unpack::<types::Progress>(&message, "containerd.types.transfer.Progress")
            else {
                continue;
            };
            let Some(digest) = progress.name.strip_prefix("layer-sha256:") else { continue };
            let bar = known.entry(progress.name.clone()).or_insert_with(|| {
                let bar =
                    bars.add(indicatif::ProgressBar::new(progress.total.unsigned_abs())).with_style(style.clone());
                bar.set_prefix(digest.chars().take(12).collect::<String>());
                bar
            });
            bar.set_message(progress.event.clone());
            match progress.event.as_str() {
                "complete" => bar.finish_with_message("complete"),
                "downloading" => bar.set_position(progress.progress.unsigned_abs()),
                _ => {}
            }
        }
    }))
}

/// The image of that name; pulled if it is not here.
pub async fn find_or_pull(client: &Client, text: &str) -> Result<Local> {
    let name = Reference::complete(text)?;
    let request = || client.request(images::GetImageRequest { name: name.clone() });
    let image = match client.images().get(request()).await {
        Ok(found) => found.into_inner().image,
        Err(status) if status.code() == tonic::Code::NotFound => {
            fetch(client, &name, false, true).await?;
            client.images().get(request()).await.map_err(said)?.into_inner().image
        }
        Err(status) => return Err(said(status)),
    };
    let target = image.and_then(|image| image.target).with_context(|| format!("image {name} has no target"))?;
    let config = config(client, &target).await?;
    let chain = crate::transfer::chain_ids(&crate::transfer::diff_ids(&config)?);
    let chain = chain.last().map_or(String::new(), Digest::to_string);
    Ok(Local { name, chain, config })
}

/// The configuration that an image's target leads to, on this platform.
async fn config(client: &Client, target: &Descriptor) -> Result<Vec<u8>> {
    let (config, _) = manifest(client, target).await?;
    read(client, &config.digest).await
}

/// Configuration and layers of the manifest that an image's target leads to, on this platform.
async fn manifest(client: &Client, target: &Descriptor) -> Result<(Described, Vec<Described>)> {
    let mut digest = target.digest.clone();
    let mut media_type = target.media_type.clone();
    for _ in 0..2 {
        match Document::read(&media_type, &read(client, &digest).await?)? {
            Document::Manifest { config, layers } => return Ok((config, layers)),
            Document::Index(manifests) => {
                let chosen = Document::choose(&manifests, &Platform::own())?;
                (digest, media_type) = (chosen.digest.clone(), chosen.media_type.clone());
            }
        }
    }
    bail!("{}: an index in an index", target.digest)
}

async fn read(client: &Client, digest: &str) -> Result<Vec<u8>> {
    let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut pieces = client.content().read(client.request(request)).await.map_err(said)?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(said)? {
        bytes.extend(piece.data);
    }
    Ok(bytes)
}

pub async fn list(client: &Client, args: &ListArgs) -> Result<i32> {
    let found = client
        .images()
        .list(client.request(images::ListImagesRequest::default()))
        .await
        .map_err(said)?
        .into_inner()
        .images;
    let target = |image: &images::Image| image.target.clone().unwrap_or_default();
    if args.quiet {
        found.iter().for_each(|image| println!("{}", image.name));
    } else if args.output == Output::Json {
        let shown: Vec<_> = found
            .iter()
            .map(|image| {
                let target = target(image);
                serde_json::json!({"name": image.name, "digest": target.digest, "mediaType": target.media_type, "labels": image.labels})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        let mut rows = vec![["IMAGE", "DIGEST", "LAYERS"].map(str::to_owned).to_vec()];
        for image in &found {
            let target = target(image);
            let layers = layers_size(client, &target).await.map_or_else(|_| "?".into(), size::show);
            rows.push(vec![image.name.clone(), target.digest.chars().skip(7).take(12).collect(), layers]);
        }
        table(&rows);
    }
    Ok(0)
}

/// The compressed size of an image's layers.
async fn layers_size(client: &Client, target: &Descriptor) -> Result<u64> {
    let (_, layers) = manifest(client, target).await?;
    Ok(layers.iter().map(|layer| layer.size).sum())
}

pub async fn tag(client: &Client, args: &TagArgs) -> Result<i32> {
    let (from, to) = (Reference::complete(&args.image)?, Reference::complete(&args.name)?);
    let found =
        client.images().get(client.request(images::GetImageRequest { name: from })).await.map_err(said)?.into_inner();
    let mut image = found.image.unwrap_or_default();
    image.name = to;
    let create = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client.images().create(client.request(create)).await {
        Err(status) if status.code() == tonic::Code::AlreadyExists => {
            let update = images::UpdateImageRequest { image: Some(image), update_mask: None, source_date_epoch: None };
            client.images().update(client.request(update)).await.map_err(said)?;
        }
        answer => drop(answer.map_err(said)?),
    }
    Ok(0)
}

pub async fn rmi(client: &Client, args: &RmiArgs) -> Result<i32> {
    for image in &args.images {
        let name = Reference::complete(image)?;
        let delete = images::DeleteImageRequest { name: name.clone(), sync: true, target: None };
        client.images().delete(client.request(delete)).await.map_err(said)?;
        println!("{name}");
    }
    Ok(0)
}
