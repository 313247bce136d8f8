//! `tarectl images`, `tag`, `rmi`, and what a container needs of an image.

mod archive;
mod pull;

use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tare_proto::containerd::services::content::v1::ReadContentRequest;
use tare_proto::containerd::services::images::v1 as images;
use tare_proto::containerd::types::Descriptor;

use super::client::{Client, said};
use super::create::{Flags, Pull};
use super::{age, container, each, list, size};
use crate::names::Digest;
use crate::registry::Reference;
use crate::transfer::{Described, Document, Platform};

pub use archive::{LoadArgs, PushArgs, SaveArgs, load, push, save};
pub use pull::{PullArgs, pull};

#[derive(clap::Args)]
pub struct ListArgs {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show whole digests
    #[arg(long)]
    digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Shown anyway; docker's flag
    #[arg(short, long)]
    all: bool,
    /// Only those with: reference, label, before, since
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    show: list::Show,
    /// Only names with this repository
    image: Option<String>,
}

#[derive(clap::Args)]
pub struct TagArgs {
    image: String,
    name: String,
}

#[derive(clap::Args)]
pub struct RmiArgs {
    /// Even if containers use it: they keep their files
    #[arg(short, long)]
    force: bool,
    /// Names or ids
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

/// The image of that name; pulled if the flags say so.
pub async fn find_or_pull(client: &Client, text: &str, flags: &Flags, quiet: bool) -> Result<Local> {
    let platform = pull::platform(flags.platform.as_deref())?;
    let here = if flags.pull == Pull::Always { None } else { find(client, text).await? };
    let image = match here {
        Some(image) => image,
        None if flags.pull == Pull::Never => bail!("no such image: {text}, and --pull is never"),
        None => {
            let name = Reference::complete(text)?;
            pull::fetch(client, &name, &platform, false, !flags.quiet && !quiet).await?;
            find(client, &name).await?.with_context(|| format!("image {name} was pulled and is gone"))?
        }
    };
    let target = image.target.with_context(|| format!("image {} has no target", image.name))?;
    let config = config(client, &target, &platform).await?;
    let chain = crate::transfer::chain_ids(&crate::transfer::diff_ids(&config)?);
    let chain = chain.last().map_or(String::new(), Digest::to_string);
    Ok(Local { name: image.name, chain, config })
}

/// The image of that name, or with that id: the beginning of its target's digest.
pub async fn find(client: &Client, text: &str) -> Result<Option<images::Image>> {
    Ok(find_all(client, text).await?.into_iter().next())
}

/// The image of that name, or all names of the one with that id.
pub async fn find_all(client: &Client, text: &str) -> Result<Vec<images::Image>> {
    if let Ok(name) = Reference::complete(text) {
        match client.images().get(client.request(images::GetImageRequest { name })).await {
            Ok(found) => return Ok(found.into_inner().image.into_iter().collect()),
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(said(status)),
        }
    }
    let id = text.strip_prefix("sha256:").unwrap_or(text);
    if id.len() < SHORTEST_ID || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Vec::new());
    }
    let digest = |image: &images::Image| image.target.as_ref().map_or(String::new(), |target| target.digest.clone());
    let mut found = all(client).await?;
    found.retain(|image| digest(image).split_once(':').is_some_and(|(_, hex)| hex.starts_with(id)));
    let first = found.first().map(digest);
    ensure!(found.iter().map(digest).all(|other| Some(other) == first), "{text}: more than one image's id begins so");
    Ok(found)
}

/// Fewer digits than this are a name.
const SHORTEST_ID: usize = 4;

pub async fn all(client: &Client) -> Result<Vec<images::Image>> {
    let request = client.request(images::ListImagesRequest::default());
    Ok(client.images().list(request).await.map_err(said)?.into_inner().images)
}

/// The configuration that an image's target leads to, on this platform.
async fn config(client: &Client, target: &Descriptor, platform: &Platform) -> Result<Vec<u8>> {
    let (config, _) = manifest(client, target, platform).await?;
    read(client, &config.digest).await
}

/// Configuration and layers of the manifest that an image's target leads to, on this platform.
async fn manifest(client: &Client, target: &Descriptor, platform: &Platform) -> Result<(Described, Vec<Described>)> {
    let mut digest = target.digest.clone();
    let mut media_type = target.media_type.clone();
    for _ in 0..2 {
        match Document::read(&media_type, &read(client, &digest).await?)? {
            Document::Manifest { config, layers } => return Ok((config, layers)),
            Document::Index(manifests) => {
                let chosen = Document::choose(&manifests, platform)?;
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

const COLUMNS: &[(&str, &str)] =
    &[("REPOSITORY", "Repository"), ("TAG", "Tag"), ("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")];
const WITH_DIGESTS: &[(&str, &str)] = &[
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("DIGEST", "Digest"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
];

pub async fn list(client: &Client, args: &ListArgs) -> Result<i32> {
    let filters = list::filters(&args.filter, &["reference", "label", "before", "since"])?;
    let mut found = all(client).await?;
    found.sort_by_key(|image| std::cmp::Reverse(created(image)));
    let when = |name: &str| {
        let name = Reference::complete(name).unwrap_or_default();
        found.iter().find(|image| image.name == name).map(created)
    };
    let mut rows = Vec::new();
    for image in &found {
        let passes = list::passes(&filters, |key, value| match key {
            "reference" => is_of(&image.name, value),
            "label" => list::has_label(image.labels.iter(), value),
            "before" => when(value).is_some_and(|other| created(image) < other),
            _ => when(value).is_some_and(|other| created(image) > other),
        });
        if passes && args.image.as_deref().is_none_or(|wanted| is_of(&image.name, wanted)) {
            rows.push(row(client, image, args.no_trunc).await);
        }
    }
    if args.quiet {
        rows.dedup_by_key(|row| row["ID"].clone());
        rows.iter().filter_map(|row| row["ID"].as_str()).for_each(|id| println!("{id}"));
        return Ok(0);
    }
    args.show.print(if args.digests { WITH_DIGESTS } else { COLUMNS }, &rows)?;
    Ok(0)
}

fn created(image: &images::Image) -> SystemTime {
    image.created_at.and_then(|at| at.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whether a name is `wanted`, or of the repository `wanted`; `*` stands for anything.
fn is_of(name: &str, wanted: &str) -> bool {
    let (repository, tag) = split(name);
    let short = familiar(&repository);
    let tagged = |repository: &str| format!("{repository}:{tag}");
    [name.to_owned(), tagged(&short), repository, short]
        .iter()
        .any(|candidate| matches(wanted.as_bytes(), candidate.as_bytes()))
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, after)| first == byte && matches(rest, after)),
    }
}

/// Repository and tag of a name.
fn split(name: &str) -> (String, String) {
    let name = name.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (name.to_owned(), "<none>".to_owned()),
    }
}

/// As docker shows a repository of its own hub.
fn familiar(repository: &str) -> String {
    let rest = repository.strip_prefix("docker.io/").unwrap_or(repository);
    rest.strip_prefix("library/").unwrap_or(rest).to_owned()
}

async fn row(client: &Client, image: &images::Image, whole: bool) -> Value {
    let target = image.target.clone().unwrap_or_default();
    let (repository, tag) = split(&image.name);
    let id = target.digest.split_once(':').map_or("", |(_, hex)| hex);
    let layers = manifest(client, &target, &Platform::own())
        .await
        .map(|(_, layers)| layers.iter().map(|layer| layer.size).sum());
    let created = created(image);
    json!({
        "Name": image.name,
        "Repository": familiar(&repository),
        "Tag": tag,
        "ID": if whole { target.digest.clone() } else { id.chars().take(12).collect() },
        "Digest": target.digest,
        "CreatedSince": format!("{} ago", age::since(created)),
        "CreatedAt": humantime::format_rfc3339_seconds(created).to_string(),
        "Size": layers.as_ref().map_or_else(|_| "?".into(), |bytes| size::show(*bytes)),
        "Bytes": layers.ok(),
        "MediaType": target.media_type,
        "Labels": image.labels,
    })
}

/// An image in docker's shape, or as the daemon has it.
pub async fn inspect(client: &Client, text: &str, native: bool) -> Result<Option<Value>> {
    let found = find_all(client, text).await?;
    let Some(image) = found.first() else { return Ok(None) };
    let target = image.target.clone().unwrap_or_default();
    if native {
        return Ok(Some(json!({"name": image.name, "labels": image.labels,
            "target": {"mediaType": target.media_type, "digest": target.digest, "size": target.size}})));
    }
    let (_, layers) = manifest(client, &target, &Platform::own()).await?;
    let config: Value = serde_json::from_slice(&config(client, &target, &Platform::own()).await?)?;
    let size: u64 = layers.iter().map(|layer| layer.size).sum();
    let digests: Vec<String> =
        found.iter().map(|image| format!("{}@{}", familiar(&split(&image.name).0), target.digest)).collect();
    let tags: Vec<String> = found.iter().map(|image| familiar(&image.name)).collect();
    Ok(Some(json!({
        "Id": target.digest, "RepoTags": tags, "RepoDigests": digests, "Created": config["created"],
        "Author": config["author"], "Architecture": config["architecture"], "Os": config["os"], "Variant": config["variant"],
        "Size": size, "Config": config["config"], "RootFS": {"Type": "layers", "Layers": config["rootfs"]["diff_ids"]},
    })))
}

pub async fn tag(client: &Client, args: &TagArgs) -> Result<i32> {
    let found = find(client, &args.image).await?;
    let mut image = found.with_context(|| format!("no such image: {}", args.image))?;
    image.name = Reference::complete(&args.name)?;
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

/// A name goes with its image; an id takes all names along.
pub async fn rmi(client: &Client, args: &RmiArgs) -> Result<i32> {
    let users = container::list(client).await?;
    Ok(each::name(&args.images, async |text| {
        let found = find_all(client, text).await?;
        ensure!(!found.is_empty(), "no such image: {text}");
        for image in &found {
            let user = users.iter().find(|container| container.image == image.name).filter(|_| !args.force);
            if let Some(user) = user {
                bail!("image {} is used by container {}: remove that first, or use --force", image.name, user.id);
            }
        }
        for image in found {
            let delete = images::DeleteImageRequest { name: image.name.clone(), sync: true, target: None };
            client.images().delete(client.request(delete)).await.map_err(said)?;
            println!("Untagged: {}", image.name);
        }
        Ok(())
    })
    .await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_matched_as_docker_does() {
        assert_eq!(split("host:5000/a/b"), ("host:5000/a/b".into(), "<none>".into()));
        assert_eq!(split("docker.io/library/busybox:1"), ("docker.io/library/busybox".into(), "1".into()));
        assert_eq!(familiar("docker.io/library/busybox"), "busybox");
        for (wanted, is) in [
            ("busybox", true),
            ("busybox:1", true),
            ("busy*", true),
            ("*:1", true),
            ("busybox:2", false),
            ("box", false),
        ] {
            assert_eq!(is_of("docker.io/library/busybox:1", wanted), is, "{wanted}");
        }
    }
}
