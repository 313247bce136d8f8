//! `tarectl pull`, and pulling on the way to a container.

use anyhow::{Context as _, Result, ensure};
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::services::streaming::v1::StreamInit;
use tare_proto::containerd::services::transfer::v1 as transfer;
use tare_proto::containerd::types::Platform as PlatformMessage;
use tare_proto::containerd::types::transfer as types;
use tokio_stream::StreamExt as _;

use crate::ctl::client::{Client, said};
use crate::registry::Reference;
use crate::snapshot::OVERLAY;
use crate::transfer::Platform;

#[derive(clap::Args)]
pub struct PullArgs {
    /// Speak plain HTTP to the registry (always so on this machine)
    #[arg(long)]
    plain_http: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The image's platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long)]
    platform: Option<String>,
    image: String,
}

pub async fn pull(client: &Client, args: &PullArgs) -> Result<i32> {
    let name = Reference::complete(&args.image)?;
    let platform = platform(args.platform.as_deref())?;
    fetch(client, &name, &platform, args.plain_http, !args.quiet).await?;
    println!("{name}");
    Ok(0)
}

/// Reads OS/ARCHITECTURE[/VARIANT]; this machine's if there is none.
pub fn platform(text: Option<&str>) -> Result<Platform> {
    let Some(text) = text else { return Ok(Platform::own()) };
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => ("", "", ""),
    };
    ensure!(!os.is_empty() && !architecture.is_empty(), "--platform {text}: not OS/ARCHITECTURE[/VARIANT]");
    let architecture = match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() })
}

/// Has the daemon pull an image, and shows a bar for each layer.
pub async fn fetch(client: &Client, name: &str, platform: &Platform, plain_http: bool, show: bool) -> Result<()> {
    let stream = format!("pull-{}", std::process::id());
    let showing = if show { Some(show_progress(client, &stream).await?) } else { None };
    let Platform { os, architecture, variant } = platform.clone();
    let platform = PlatformMessage { os, architecture, variant, os_version: String::new() };
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
