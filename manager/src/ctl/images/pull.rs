//! `tarectl pull`, and pulling on the way to a container.

use anyhow::{Result, ensure};
use tare_proto::any;
use tare_proto::containerd::services::transfer::v1 as transfer;
use tare_proto::containerd::types::Platform as PlatformMessage;
use tare_proto::containerd::types::transfer as types;

use crate::ctl::client::{Client, said};
use crate::ctl::{credentials, stream};
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
    Ok(Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() })
}

pub fn message(platform: &Platform) -> PlatformMessage {
    let Platform { os, architecture, variant } = platform.clone();
    PlatformMessage { os, architecture, variant, os_version: String::new() }
}

/// Has the daemon pull an image, and shows a bar for each layer.
pub async fn fetch(client: &Client, name: &str, platform: &Platform, plain_http: bool, show: bool) -> Result<()> {
    let showing = if show { Some(show_progress(client).await?) } else { None };
    let platform = message(platform);
    let resolver = types::RegistryResolver {
        auth_stream: credentials::answer(client).await?,
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
        options: Some(transfer::TransferOptions {
            progress_stream: showing.as_ref().map_or(String::new(), |(id, _)| id.clone()),
        }),
    };
    let answer = client.transfer().transfer(client.request(request)).await;
    if let Some((_, showing)) = showing {
        // The daemon ends the stream when it has told all. If it went away it does not.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), showing).await;
    }
    answer.map_err(said)?;
    Ok(())
}

/// Opens a stream for progress and draws what arrives; gives its name.
async fn show_progress(client: &Client) -> Result<(String, tokio::task::JoinHandle<()>)> {
    let mut stream = stream::open(client, "pull").await?;
    let id = stream.id.clone();
    let showing = tokio::spawn(async move {
        let bars = indicatif::MultiProgress::new();
        let style = indicatif::ProgressStyle::with_template(
            "{prefix:14} {msg:12} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}",
        );
        let style = style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        let mut known: std::collections::HashMap<String, indicatif::ProgressBar> = std::collections::HashMap::new();
        while let Ok(Some(message)) = stream.from_daemon.message().await {
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
    });
    Ok((id, showing))
}
