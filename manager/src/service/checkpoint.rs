//! A task as content: what its shim has dumped into a folder becomes an archive, and an archive a folder to restore from.
//!
//! Source: containerd's `core/images/mediatypes.go`, `plugins/services/tasks/local.go`.

use std::fs::{self, DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::runc::v1::{CheckpointOptions, Options};
use tare_proto::containerd::services::tasks::v1 as pb;
use tare_proto::containerd::task::v3 as shim;
use tare_proto::containerd::types::{Descriptor, Mount};

use super::Services;
use crate::error::{Doing as _, Error, Result};
use crate::identity;
use crate::layer::{self, Packing, Source};
use crate::names::{Digest, Id, Labels, LeaseId, Namespace};
use crate::task::Checkpoint;

/// An archive of CRIU's images.
const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// The container's specification, an `Any` in protobuf.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";
const OPTIONS: &str = "containerd.runc.v1.Options";

impl Services {
    /// Has a task dumped. Into the folder that the client names, and then there is no content; else what was dumped and the
    /// container's specification become content.
    pub(super) async fn dump(
        &self,
        namespace: Namespace,
        lease: Option<LeaseId>,
        request: pb::CheckpointTaskRequest,
    ) -> Result<Vec<Descriptor>> {
        let id = Id::parse(&request.container_id)?;
        let container = self.containers.get(&namespace, &id)?;
        let task = self.tasks.get(&namespace, &id)?;
        let named = options::<CheckpointOptions>(request.options.as_ref(), CHECKPOINT_OPTIONS)?.image_path;
        let folder = if named.is_empty() { Some(Folder::new(&self.state)?) } else { None };
        let path = folder.as_ref().map_or(Path::new(&named), Folder::path).display().to_string();
        let ask = shim::CheckpointTaskRequest { id: id.to_string(), path, options: request.options };
        task.call::<()>("Checkpoint", &ask).await?;
        let Some(folder) = folder else { return Ok(Vec::new()) };
        let services = self.clone();
        let work = move || services.keep(&namespace, lease.as_ref(), &folder, container.spec.unwrap_or_default());
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
    }

    fn keep(
        &self,
        namespace: &Namespace,
        lease: Option<&LeaseId>,
        folder: &Folder,
        spec: Any,
    ) -> Result<Vec<Descriptor>> {
        let bind = Mount {
            r#type: "bind".into(),
            source: folder.path().display().to_string(),
            options: ["rbind", "ro"].map(str::to_owned).to_vec(),
            ..Mount::default()
        };
        let source = Source::of(&[bind])?;
        let images = self.write(namespace, lease, &folder.reference("images"), IMAGES, |out| {
            layer::diff(None, &source, &self.root, Packing::Plain, None, out).map(drop)
        })?;
        let config = self.write(namespace, lease, &folder.reference("spec"), CONFIG, |out| {
            out.write_all(&spec.encode_to_vec()).doing(|| "writing the specification".into())
        })?;
        Ok(vec![images, config])
    }

    /// Makes content of what `fill` writes.
    fn write(
        &self,
        namespace: &Namespace,
        lease: Option<&LeaseId>,
        reference: &str,
        media_type: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Descriptor> {
        self.hold(namespace, lease, "ingests", reference)?;
        let mut writer = self.content.writer(namespace, reference, 0, None)?;
        let mut out = BufWriter::with_capacity(256 << 10, &mut writer);
        let filled = fill(&mut out).and_then(|()| out.flush().doing(|| format!("writing {reference}")));
        drop(out);
        if let Err(error) = filled {
            writer.discard()?;
            return Err(error);
        }
        let (digest, size) = (writer.digest(), writer.status().offset);
        let bytes = i64::try_from(size).unwrap_or(i64::MAX);
        self.hold_content(namespace, lease, &digest)?;
        match writer.commit(size, None, &Labels::default()) {
            Ok(_) => self.tell_content(namespace, &digest, bytes),
            Err(Error::AlreadyExists(_)) => {} // the same container, dumped in the same state
            Err(error) => return Err(error),
        }
        Ok(Descriptor {
            media_type: media_type.into(),
            digest: digest.to_string(),
            size: bytes,
            ..Descriptor::default()
        })
    }

    /// What a task is to be restored from, if it is: a folder that its options name, else content.
    pub(super) fn checkpoint_of(
        &self,
        namespace: &Namespace,
        request: &pb::CreateTaskRequest,
    ) -> Result<Option<Checkpoint>> {
        let named = match &request.options {
            // Of another runtime's options nothing is known.
            Some(given) if any::name(given) != OPTIONS => String::new(),
            given => options::<Options>(given.as_ref(), OPTIONS)?.criu_image_path,
        };
        if !named.is_empty() {
            return Ok(Some(Checkpoint::Folder(named.into())));
        }
        let Some(given) = &request.checkpoint else { return Ok(None) };
        if given.media_type != IMAGES {
            return Err(Error::InvalidArgument(format!("unsupported checkpoint type {:?}", given.media_type)));
        }
        let archive: File = self.content.reader(namespace, &Digest::parse(&given.digest)?)?;
        Ok(Some(Checkpoint::Archive(archive)))
    }
}

fn options<M: prost::Message + Default>(given: Option<&Any>, name: &str) -> Result<M> {
    let Some(given) = given.filter(|any| !any.type_url.is_empty()) else { return Ok(M::default()) };
    let read = any::unpack(given, name).map_err(|error| Error::InvalidArgument(format!("options: {error}")))?;
    read.ok_or_else(|| Error::InvalidArgument(format!("options of type {}: {name} is known", given.type_url)))
}

/// A folder of ours that is gone when this is.
struct Folder(PathBuf);

impl Folder {
    fn new(state: &Path) -> Result<Folder> {
        let path = state.join(format!("checkpoint-{}", identity::random()?));
        DirBuilder::new().mode(0o700).create(&path).doing(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// For what is written of it: nobody else has that.
    fn reference(&self, what: &str) -> String {
        self.0.join(what).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("removing {}: {error}", self.0.display());
        }
    }
}
