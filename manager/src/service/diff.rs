use std::path::PathBuf;

use tare_proto::containerd::services::diff::v1 as pb;
use tare_proto::containerd::types::{Descriptor, Mount};
use tonic::{Request, Response, Status};

use super::{Services, namespace, required};
use crate::error::{Error, Result};
use crate::layer::{self, Removals};
use crate::names::Digest;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

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
                let applied = layer::apply(blob, &target.folder, target.removals)?;
                layer::inherit(&target.folder, &applied.implied, &target.lower)?;
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
        namespace(&request)?;
        Err(Error::Unimplemented("making a layer from a snapshot".into()).into())
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

/// Where a layer goes. Nothing is mounted for it: what is written to the upper folder of an overlay is what one would
/// write through it, if removals are written in overlayfs's way.
struct Target {
    folder: PathBuf,
    lower: Vec<PathBuf>,
    removals: Removals,
}

impl Target {
    fn of(mounts: &[Mount]) -> Result<Target> {
        let [mount] = mounts else {
            return Err(Error::Unimplemented(format!("unpacking into {} mounts: one is possible", mounts.len())));
        };
        let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        match mount.r#type.as_str() {
            "overlay" => {
                let upper = option("upperdir")
                    .ok_or_else(|| Error::InvalidArgument("unpacking into an overlay without upperdir".into()))?;
                let lower = option("lowerdir").unwrap_or_default().split(':').map(PathBuf::from).collect();
                Ok(Target { folder: upper.into(), lower, removals: Removals::Overlay })
            }
            "bind" if !mount.options.iter().any(|option| option == "ro") => {
                Ok(Target { folder: mount.source.clone().into(), lower: Vec::new(), removals: Removals::Remove })
            }
            "bind" => Err(Error::InvalidArgument(format!("unpacking into {}: it is read-only", mount.source))),
            other => Err(Error::Unimplemented(format!("unpacking into a mount of type {other:?}"))),
        }
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

    #[test]
    fn the_upper_folder_stands_for_the_overlay() {
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            r#type: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let overlay =
            Target::of(&[mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"])]).unwrap();
        assert_eq!((overlay.folder, overlay.removals), ("/u".into(), Removals::Overlay));
        assert_eq!(overlay.lower, [PathBuf::from("/b"), PathBuf::from("/a")]);
        let bind = Target::of(&[mount("bind", "/f", &["rw", "rbind"])]).unwrap();
        assert_eq!((bind.folder, bind.removals), ("/f".into(), Removals::Remove));
        for bad in [
            vec![],
            vec![mount("bind", "/f", &["ro"])],
            vec![mount("overlay", "o", &["lowerdir=/a:/b"])],
            vec![mount("nfs", "x", &[])],
        ] {
            assert!(Target::of(&bad).is_err());
        }
    }
}
