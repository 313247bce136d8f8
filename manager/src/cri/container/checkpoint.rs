//! CheckpointContainer: a container that runs is dumped by CRIU and goes on; an archive has all that it could go on from
//! elsewhere.
//!
//! ```text
//! checkpoint/       CRIU's images           config.dump   which container of which image, when
//! rootfs-diff.tar   what it wrote           spec.dump     its specification
//! container.log     its log                 status.dump   its status as CRI shows it
//! dump.log, stats-dump                      what CRIU said
//! ```
//!
//! Source: cri-api `api.proto`, `CheckpointContainer`; containerd `internal/cri/server/container_checkpoint_linux.go`;
//! checkpoint-restore/checkpointctl `lib/metadata.go` for the names.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tare_proto::any;
use tare_proto::containerd::runc::v1::CheckpointOptions;
use tare_proto::containerd::task::v3 as shim;
use tare_proto::containerd::types::Mount;
use tare_proto::runtime::v1 as pb;

use crate::cri::record::off_thread;
use crate::cri::rows::Container;
use crate::cri::{Cri, folders, namespace};
use crate::error::{Doing as _, Error, Result};
use crate::layer::{self, Packing, Source};
use crate::names::Id;
use crate::snapshot::OVERLAY;

impl Cri {
    pub(in crate::cri) async fn checkpoint(&self, request: pb::CheckpointContainerRequest) -> Result<()> {
        if !Path::new(&request.location).is_absolute() {
            return Err(Error::InvalidArgument(format!("location: {:?} is not absolute", request.location)));
        }
        let (id, task) = self.running(&request.container_id)?;
        let container = self.containers.find(id.as_str())?;
        let _turn = container.turn.write().await; // it is neither removed nor dumped twice at once
        let row = container.row();
        let [kept, _] = self.folders.of_container(id.as_str());
        let scratch = Scratch::make(kept.join("checkpoint"))?;
        let ask = shim::CheckpointTaskRequest {
            id: id.to_string(),
            path: scratch.0.join("checkpoint").display().to_string(),
            options: Some(any::pack("containerd.runc.v1.CheckpointOptions", &CheckpointOptions::default())),
        };
        let dump = task.call::<()>("Checkpoint", &ask);
        match u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0) {
            None => dump.await?,
            Some(limit) => tokio::time::timeout(Duration::from_secs(limit), dump).await.map_err(|_| {
                Error::DeadlineExceeded(format!("checkpointing container {id}: it took longer than {limit} s"))
            })??,
        }
        let cri = self.clone();
        off_thread(move || {
            cri.collect_dump(&row, &scratch.0)?;
            archive(&scratch.0, &cri.parts.root, Path::new(&request.location))
        })
        .await
    }

    /// What belongs to CRIU's images, beside them.
    fn collect_dump(&self, row: &Container, place: &Path) -> Result<()> {
        let id = Id::parse(&row.id)?;
        let record = self.parts.containers.get(&namespace(), &id)?;
        let metadata = row.config().metadata.clone().unwrap_or_default();
        let config = json!({
            "id": row.id,
            "name": metadata.name,
            "rootfsImage": row.image_ref,
            "rootfsImageRef": row.image,
            "rootfsImageName": row.image_ref,
            "runtime": record.runtime.unwrap_or_default().name,
            "createdTime": time(row.created_at),
            "checkpointedTime": humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            "restoredTime": "0001-01-01T00:00:00Z",
            "restored": false,
        });
        let status = json!({
            "id": row.id,
            "metadata": {"name": metadata.name, "attempt": metadata.attempt},
            "state": 1,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "image": {"image": row.image_ref},
            "image_ref": row.image,
            "labels": row.config().labels,
            "annotations": row.config().annotations,
            "log_path": row.log_path,
        });
        write(&place.join("config.dump"), config.to_string().as_bytes())?;
        write(&place.join("status.dump"), status.to_string().as_bytes())?;
        write(&place.join("spec.dump"), &record.spec.unwrap_or_default().value)?;
        let work = self.parts.state.join("io.containerd.runtime.v2.task").join(namespace().as_str()).join(&row.id);
        let work = work.join("work");
        let said = [work.join("dump.log"), work.join("stats-dump")];
        let log = (!row.log_path.is_empty()).then(|| (PathBuf::from(&row.log_path), "container.log"));
        for (from, name) in said.into_iter().zip(["dump.log", "stats-dump"]).chain(log) {
            if from.exists() {
                let to = place.join(name);
                fs::copy(&from, &to).doing(|| format!("copying {}", from.display()))?;
                let private = fs::set_permissions(&to, Permissions::from_mode(0o600));
                private.doing(|| format!("changing the mode of {}", to.display()))?;
            }
        }
        let written = self.parts.snapshots.mounts(&namespace(), OVERLAY, &row.id)?;
        let parent = self.parts.snapshots.info(&namespace(), OVERLAY, &row.id)?.parent;
        let below = Source::of(&[shown(&self.parts.snapshots.chain(&namespace(), &parent)?)])?;
        let changes = place.join("rootfs-diff.tar");
        layer::diff(Some(&below), &Source::of(&written)?, &self.parts.root, Packing::Plain, None, create(&changes)?)
            .map(drop)
    }
}

/// Layers as they are seen without anything written on them; top first.
fn shown(layers: &[PathBuf]) -> Mount {
    let names: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    match names.as_slice() {
        [one] => Mount { r#type: "bind".into(), source: one.clone(), options: vec!["ro".into()], ..Mount::default() },
        several => Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![format!("lowerdir={}", several.join(":"))],
            ..Mount::default()
        },
    }
}

/// The archive is made aside and named when it is whole: what is at its place is a whole one or none.
fn archive(folder: &Path, root: &Path, location: &Path) -> Result<()> {
    let bind = Mount {
        r#type: "bind".into(),
        source: folder.display().to_string(),
        options: vec!["ro".into()],
        ..Mount::default()
    };
    let mut aside = location.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    let made = create(&aside).and_then(|file| {
        layer::diff(None, &Source::of(&[bind])?, root, Packing::Plain, None, &file)?;
        file.sync_all().doing(|| format!("writing {}", aside.display()))?;
        fs::rename(&aside, location).doing(|| format!("naming {}", location.display()))
    });
    if made.is_err() {
        let _ = fs::remove_file(&aside); // it may not be there
    }
    made
}

fn create(path: &Path) -> Result<File> {
    let new = File::options().write(true).create_new(true).mode(0o600).open(path);
    new.doing(|| format!("making {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::io::Write::write_all(&mut create(path)?, bytes).doing(|| format!("writing {}", path.display()))
}

fn time(nanoseconds: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    humantime::format_rfc3339_nanos(UNIX_EPOCH + since).to_string()
}

/// A folder that is gone when this is. A daemon that was killed leaves one to the next attempt, or to the container's end.
struct Scratch(PathBuf);

impl Scratch {
    fn make(place: PathBuf) -> Result<Scratch> {
        folders::remove(&place)?;
        folders::make(&place, 0o700)?;
        Ok(Scratch(place))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = folders::remove(&self.0) {
            tracing::warn!("{error}");
        }
    }
}
