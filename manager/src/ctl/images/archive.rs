//! `tarectl push`, `save` and `load`.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use tare_proto::any;
use tare_proto::containerd::services::transfer::v1 as pb;
use tare_proto::containerd::types::transfer as types;

use super::pull;
use crate::ctl::client::{Client, said};
use crate::ctl::{credentials, stream};
use crate::snapshot::OVERLAY;

const STORE: &str = "containerd.types.transfer.ImageStore";
/// What a sender may have under way, as the daemon grants it too.
const WINDOW: i32 = 2 * (32 << 10);
const PIECE: usize = 32 << 10;

#[derive(clap::Args)]
pub struct PushArgs {
    /// Speak plain HTTP to the registry (always so on this machine)
    #[arg(long)]
    plain_http: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

#[derive(clap::Args)]
pub struct SaveArgs {
    /// The file; standard output if there is none
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The platform to save: OS/ARCHITECTURE[/VARIANT]
    #[arg(long)]
    platform: Option<String>,
    #[arg(required = true)]
    images: Vec<String>,
}

#[derive(clap::Args)]
pub struct LoadArgs {
    /// The file; standard input if there is none
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

pub async fn push(client: &Client, args: &PushArgs) -> Result<i32> {
    let image = super::find(client, &args.image).await?.with_context(|| format!("no such image: {}", args.image))?;
    let resolver = types::RegistryResolver {
        auth_stream: credentials::answer(client).await?,
        default_scheme: if args.plain_http { "http".into() } else { String::new() },
        ..Default::default()
    };
    let store = types::ImageStore { name: image.name.clone(), ..Default::default() };
    let registry = types::OciRegistry { reference: image.name.clone(), resolver: Some(resolver) };
    let request = pb::TransferRequest {
        source: Some(any::pack(STORE, &store)),
        destination: Some(any::pack("containerd.types.transfer.OCIRegistry", &registry)),
        options: None,
    };
    client.transfer().transfer(client.request(request)).await.map_err(said)?;
    if !args.quiet {
        println!("{}", image.name);
    }
    Ok(0)
}

pub async fn save(client: &Client, args: &SaveArgs) -> Result<i32> {
    let mut names = Vec::new();
    for text in &args.images {
        let image = super::find(client, text).await?.with_context(|| format!("no such image: {text}"))?;
        names.push(image.name);
    }
    let mut out: Box<dyn Write + Send> = match &args.output {
        Some(file) => Box::new(File::create(file).with_context(|| format!("making {}", file.display()))?),
        None if std::io::stdout().is_terminal() => {
            bail!("an archive is not for a terminal: use -o FILE or redirect it")
        }
        None => Box::new(std::io::stdout()),
    };
    let mut archive = stream::open(client, "save").await?;
    let reference = |name: &String| types::ImageReference { name: name.clone(), ..Default::default() };
    let store = types::ImageStore { extra_references: names.iter().map(reference).collect(), ..Default::default() };
    let platforms = match &args.platform {
        Some(text) => vec![pull::message(&pull::platform(Some(text))?)],
        None => Vec::new(),
    };
    let to = types::ImageExportStream { stream: archive.id.clone(), platforms, ..Default::default() };
    let request = pb::TransferRequest {
        source: Some(any::pack(STORE, &store)),
        destination: Some(any::pack("containerd.types.transfer.ImageExportStream", &to)),
        options: None,
    };
    let (mut transfer, request) = (client.transfer(), client.request(request));
    let transfer = tokio::spawn(async move { transfer.transfer(request).await });
    let mut granted = 0;
    loop {
        if granted < WINDOW {
            let update = any::pack("containerd.types.transfer.WindowUpdate", &types::WindowUpdate { update: WINDOW });
            let _ = archive.to_daemon.send(update).await; // it has sent all, or the transfer tells why not
            granted += WINDOW;
        }
        let Some(message) = archive.from_daemon.message().await.map_err(said)? else { break };
        if let Some(types::Data { data }) = any::unpack(&message, "containerd.types.transfer.Data")? {
            granted -= i32::try_from(data.len()).unwrap_or(WINDOW);
            out.write_all(&data).context("writing the archive")?;
        }
    }
    out.flush().context("writing the archive")?;
    transfer.await.context("saving")?.map_err(said)?;
    Ok(0)
}

pub async fn load(client: &Client, args: &LoadArgs) -> Result<i32> {
    let from: Box<dyn Read + Send> = match &args.input {
        Some(file) => Box::new(File::open(file).with_context(|| format!("opening {}", file.display()))?),
        None if std::io::stdin().is_terminal() => bail!("an archive is missing: use -i FILE or redirect it"),
        None => Box::new(std::io::stdin()),
    };
    let before = super::all(client).await?;
    let mut archive = stream::open(client, "load").await?;
    let platform = pull::message(&pull::platform(None)?);
    let unpacks = vec![types::UnpackConfiguration { platform: Some(platform.clone()), snapshotter: OVERLAY.into() }];
    // Whole names count as they are; where there is only a tag, it gets this before it, as ctr does it.
    let today = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let name = format!("import-{}", today.split('T').next().unwrap_or_default());
    let any_name = types::ImageReference { name, is_prefix: true, allow_overwrite: true, ..Default::default() };
    let store = types::ImageStore {
        platforms: vec![platform],
        unpacks,
        extra_references: vec![any_name],
        ..Default::default()
    };
    let import = types::ImageImportStream { stream: archive.id.clone(), ..Default::default() };
    let request = pb::TransferRequest {
        source: Some(any::pack("containerd.types.transfer.ImageImportStream", &import)),
        destination: Some(any::pack(STORE, &store)),
        options: None,
    };
    let (mut transfer, request) = (client.transfer(), client.request(request));
    let mut transfer = tokio::spawn(async move { transfer.transfer(request).await });
    let mut pieces = pieces(from);
    let mut granted = 0_i64;
    loop {
        tokio::select! {
            answer = &mut transfer => {
                answer.context("loading")?.map_err(said)?;
                break;
            }
            Ok(Some(message)) = archive.from_daemon.message() => {
                let update = any::unpack::<types::WindowUpdate>(&message, "containerd.types.transfer.WindowUpdate")?;
                granted += update.map_or(0, |update| i64::from(update.update));
            }
            Some(piece) = pieces.recv(), if granted > 0 => {
                let data = piece.context("reading the archive")?;
                granted -= i64::try_from(data.len()).unwrap_or(0);
                if data.is_empty() {
                    // The end of ours is how the daemon knows that all is there.
                    drop(archive.to_daemon);
                    (&mut transfer).await.context("loading")?.map_err(said)?;
                    break;
                }
                let message = any::pack("containerd.types.transfer.Data", &types::Data { data });
                let _ = archive.to_daemon.send(message).await; // the transfer tells why
            }
        }
    }
    let after = super::all(client).await?;
    let new =
        after.iter().filter(|image| !before.iter().any(|old| old.name == image.name && old.target == image.target));
    if !args.quiet {
        new.for_each(|image| println!("Loaded image: {}", image.name));
    }
    ensure!(!after.is_empty(), "no image was in the archive");
    Ok(0)
}

/// Reads on a thread that may wait; an empty piece is the end.
fn pieces(mut from: Box<dyn Read + Send>) -> tokio::sync::mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (give, pieces) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = from.read(&mut piece).map(|length| {
                piece.truncate(length);
                piece
            });
            let last = read.as_ref().is_ok_and(Vec::is_empty) || read.is_err();
            if give.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    pieces
}
