//! Layers: unpacked into a snapshot, and made from what differs between two.

use std::io::{BufWriter, Write as _};

use tare_proto::containerd::services::diff::v1 as pb;
use tare_proto::containerd::types::Descriptor;
use tonic::{Request, Response, Status};

use super::{Services, lease, namespace, required};
use crate::error::{Doing as _, Error, Result};
use crate::identity;
use crate::layer::{self, Packing, Source, Target};
use crate::names::{Digest, Labels, LeaseId, Namespace, check_labels};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Says of a packed layer what it is unpacked.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

#[tonic::async_trait]
impl pb::diff_server::Diff for Services {
    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> std::result::Result<Response<pb::ApplyResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let diff = required(request.diff, "diff")?;
        check_type(&diff.media_type)?;
        let (digest, target) = (Digest::parse(&diff.digest)?, Target::of(&request.mounts)?);
        let applied = self
            .blocking(move |services| {
                let blob = services.content.reader(&namespace, &digest)?;
                let applied = target.unpack(blob)?;
                if request.sync_fs {
                    let doing = || format!("syncing {}", target.folder.display());
                    let folder = std::fs::File::open(&target.folder).doing(doing)?;
                    rustix::fs::syncfs(&folder).doing(doing)?;
                }
                Ok(applied)
            })
            .await?;
        let applied = Descriptor {
            media_type: LAYER.into(),
            digest: applied.diff_id.to_string(),
            size: i64::try_from(applied.size).unwrap_or(i64::MAX),
            ..Descriptor::default()
        };
        Ok(Response::new(pb::ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<pb::DiffRequest>) -> std::result::Result<Response<pb::DiffResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        let comparison = Comparison::of(request.into_inner())?;
        let services = self.clone();
        let diff = self
            .finish(async move {
                let work = move || services.compare(&namespace, lease.as_ref(), comparison);
                tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
            })
            .await?;
        Ok(Response::new(pb::DiffResponse { diff: Some(diff) }))
    }
}

/// A request to compare, read.
struct Comparison {
    left: Option<Source>,
    right: Source,
    media_type: String,
    packing: Packing,
    reference: String,
    labels: Labels,
    newest: Option<i64>,
}

impl Comparison {
    fn of(request: pb::DiffRequest) -> Result<Comparison> {
        check_labels(&request.labels)?;
        let media_type = match request.media_type.as_str() {
            "" => format!("{LAYER}+gzip"),
            given => given.to_owned(),
        };
        Ok(Comparison {
            left: if request.left.is_empty() { None } else { Some(Source::of(&request.left)?) },
            right: Source::of(&request.right)?,
            packing: packing(&media_type)?,
            media_type,
            reference: match request.r#ref.as_str() {
                "" => format!("diff-{}", identity::random()?),
                given => given.to_owned(),
            },
            labels: request.labels,
            newest: request.source_date_epoch.map(|time| time.seconds),
        })
    }
}

fn packing(media_type: &str) -> Result<Packing> {
    const TYPES: &[(&str, Packing)] = &[
        ("application/vnd.oci.image.layer.v1.tar", Packing::Plain),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Packing::Gzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Packing::Zstd),
        ("application/vnd.docker.image.rootfs.diff.tar", Packing::Plain),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Packing::Gzip),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Packing::Zstd),
    ];
    let known = TYPES.iter().find(|(name, _)| *name == media_type);
    known
        .map(|(_, packing)| *packing)
        .ok_or_else(|| Error::Unimplemented(format!("unsupported diff media type: {media_type}")))
}

impl Services {
    fn compare(&self, namespace: &Namespace, lease: Option<&LeaseId>, comparison: Comparison) -> Result<Descriptor> {
        let Comparison { left, right, media_type, packing, reference, mut labels, newest } = comparison;
        self.hold(namespace, lease, "ingests", &reference)?;
        let mut writer = self.content.writer(namespace, &reference, 0, None)?;
        writer.restart()?;
        let mut out = BufWriter::with_capacity(256 << 10, &mut writer);
        let made = layer::diff(left.as_ref(), &right, &self.root, packing, newest, &mut out)
            .and_then(|made| out.flush().doing(|| format!("writing {reference}")).map(|()| made));
        drop(out);
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                writer.discard()?;
                return Err(error);
            }
        };
        labels.entry(UNCOMPRESSED.into()).or_insert_with(|| made.diff_id.to_string());
        let (digest, size) = (writer.digest(), writer.status().offset);
        self.hold_content(namespace, lease, &digest)?;
        match writer.commit(size, None, &labels) {
            Ok(_) => self.tell_content(namespace, &digest, i64::try_from(size).unwrap_or(i64::MAX)),
            Err(Error::AlreadyExists(_)) => {
                // Made before, perhaps by somebody who did not know what it is unpacked.
                self.content.update(namespace, &digest, |known| {
                    known.extend(labels);
                    Ok(())
                })?;
            }
            Err(error) => return Err(error),
        }
        Ok(Descriptor {
            media_type,
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Descriptor::default()
        })
    }
}

/// Compression is told by the archive's first bytes; the type only says that it is a layer's archive at all.
fn check_type(media_type: &str) -> Result<()> {
    const ARCHIVES: &[&str] = &[
        LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let compressed = |rest: &str| matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd");
    match ARCHIVES.iter().any(|archive| media_type.strip_prefix(archive).is_some_and(compressed)) {
        true => Ok(()),
        false => Err(Error::Unimplemented(format!("unpacking {media_type:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_their_type() {
        for good in [LAYER, "application/vnd.docker.image.rootfs.diff.tar.gzip", &format!("{LAYER}+zstd")] {
            check_type(good).unwrap();
        }
        for bad in ["", "text/plain", &format!("{LAYER}+encrypted"), "application/vnd.oci.image.manifest.v1+json"] {
            assert!(matches!(check_type(bad), Err(Error::Unimplemented(_))), "{bad}");
        }
    }
}
