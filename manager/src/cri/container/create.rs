//! CreateContainer.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use prost_types::Any;
use tare_proto::containerd::services::containers::v1 as containers;
use tare_proto::containerd::types::Mount;
use tare_proto::runtime::v1 as pb;

use super::image::Image;
use super::look::Root;
use super::{stop, volume};
use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Container, ContainerState, Pod, PodState};
use crate::cri::spec::{self, Given, User};
use crate::cri::{Cri, events, fifo, folders, namespace, new_id, now, required};
use crate::error::{Doing as _, Error, Result};
use crate::names::Labels;
use crate::snapshot::{self, OVERLAY};

/// The type of a runtime specification in a container's record.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Cri {
    pub(in crate::cri) async fn create_container(&self, request: pb::CreateContainerRequest) -> Result<String> {
        let config = required(request.config, "config")?;
        let pod = self.pods.find(&request.pod_sandbox_id)?;
        // It is not removed while something is being made in it.
        let _stays = pod.turn.read().await;
        let of = pod.row();
        if of.state() != PodState::Ready {
            return Err(Error::FailedPrecondition(format!("sandbox container {:?} is not running", pod.id)));
        }
        check(&config)?;
        check_users(&of, &config)?;
        let asked = config.image.clone().unwrap_or_default().image;
        let (cri, mounts) = (self.clone(), config.mounts.clone());
        let (image, mounts) = off_thread(move || Ok((cri.image(&asked)?, cri.with_image_ids(mounts)?))).await?;
        let row = Container {
            id: new_id(),
            pod: pod.id.clone(),
            log_path: log_path(of.config(), &config)?,
            stop_signal: stop::signal(&config, &image.config)?,
            resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            mounts,
            image: image.id.clone(),
            image_ref: image.name.clone(),
            image_digest: image.digest.clone(),
            handler: of.handler.clone(),
            created_at: now(),
            config: Some(config),
            ..Container::default()
        };
        let container = self.containers.add(row).await?;
        let (cri, made) = (self.clone(), container.clone());
        let user = match off_thread(move || cri.make_container(&made.row(), &of, &image)).await {
            Ok(user) => user,
            Err(error) => {
                if let Err(left) = self.unmake(&container).await {
                    tracing::error!(container = container.id, "undoing what was made of a container: {left}");
                }
                return Err(error);
            }
        };
        container
            .change(move |row| {
                row.user = Some(user.shown());
                row.set_state(ContainerState::Created);
                Ok(())
            })
            .await?;
        events::container(self, &container, pb::ContainerEventType::ContainerCreatedEvent);
        Ok(container.id.clone())
    }

    /// All that waits for the disk.
    fn make_container(&self, row: &Container, pod: &Pod, image: &Image) -> Result<User> {
        let [kept, mounted] = self.folders.of_container(&row.id);
        folders::make(&kept, 0o711)?;
        folders::make(&mounted, 0o711)?;
        let config = row.config();
        for missing in spec::missing_sources(config) {
            folders::make(&missing, 0o755)?;
        }
        let ids = pod.mappings().map(|(uids, gids)| {
            let numbers = |ids: pb::IdMapping| (ids.container_id, ids.host_id, ids.length);
            snapshot::ids::labels(numbers(uids), numbers(gids))
        });
        let mounts = self.snapshot_of(image, &row.id, &row.id, ids.unwrap_or_default(), false)?;
        let root = Root::open(&mounts, &self.folders.look().join(&row.id), None)?;
        let security = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        let user = User::of(&security, &image.config.user, &root.path())?;
        let taken = |target: &str| {
            let path = |text: &str| Path::new(text).components().collect::<PathBuf>();
            config.mounts.iter().any(|mount| path(&mount.container_path) == path(target))
        };
        let mut more = volume::make(&image.config, &root, &kept, taken)?;
        more.extend(self.mount_images(row, pod, &mounted)?);
        if config.stdin {
            fifo::one(&mounted.join("stdin"))?;
        }
        let options = security.namespace_options.unwrap_or_default();
        let spec = spec::spec(&Given {
            id: &row.id,
            pod,
            config,
            image: &image.config,
            user: &user,
            files: &self.folders.files(&pod.id),
            more: &more,
            pid: match options.pid() {
                pb::NamespaceMode::Target => self.target(pod, &options.target_id)?,
                _ => pod.pid,
            },
            cdi: &self.config.cdi_spec_dirs,
            host: &self.host,
        })?;
        self.record(row, pod, spec.to_string())?;
        Ok(user)
    }

    /// Mounts of images as they are shown: with the id of what was found.
    fn with_image_ids(&self, mut mounts: Vec<pb::Mount>) -> Result<Vec<pb::Mount>> {
        for mount in &mut mounts {
            if let Some(image) = &mut mount.image {
                image.image_ref = self.image_volume(&mount.container_path, &image.image)?.id;
            }
        }
        Ok(mounts)
    }

    fn image_volume(&self, target: &str, reference: &str) -> Result<Image> {
        self.image(reference).map_err(|error| unmountable(target, &error))
    }

    /// Images that are mounted as volumes: each a view, mounted by us, since a part of it may be asked for.
    fn mount_images(&self, row: &Container, pod: &Pod, place: &Path) -> Result<Vec<spec::Bind>> {
        let mut binds = Vec::new();
        let users = pod.mappings().map(|_| {
            let path = format!("/proc/{}/ns/user", pod.pid);
            File::open(&path).map(OwnedFd::from).doing(|| format!("opening {path}"))
        });
        let users = users.transpose()?;
        for (number, mount) in row.config().mounts.iter().enumerate() {
            let Some(image) = &mount.image else { continue };
            let wrong = |why: &str| Error::InvalidArgument(format!("mounts: {}: {why}", mount.container_path));
            if !mount.host_path.is_empty() {
                return Err(wrong("image and host_path cannot both be given"));
            }
            if !mount.readonly {
                return Err(wrong("an image can be mounted for reading only: set readonly"));
            }
            let image = self.image_volume(&mount.container_path, &image.image)?;
            let key = format!("{}-image-{number}", row.id);
            let mounts = self.snapshot_of(&image, &key, &row.id, Labels::new(), true)?;
            let root = Root::open(&mounts, &self.folders.look().join(&key), users.as_ref())?;
            let target = place.join("images").join(number.to_string());
            let mounted = super::look::mount_part(&root, &mount.image_sub_path, &target);
            mounted.map_err(|error| unmountable(&mount.container_path, &error))?;
            binds.push(spec::Bind {
                source: target,
                target: mount.container_path.clone(),
                read_only: true,
                mapped: false,
            });
        }
        Ok(binds)
    }

    /// The pid of the container whose PID namespace is to be joined.
    fn target(&self, pod: &Pod, id: &str) -> Result<u32> {
        let wrong = |why: &str| Error::InvalidArgument(format!("namespace_options.target_id: container {id:?} {why}"));
        let row = self.containers.get(id).ok_or_else(|| wrong("is not known"))?.row();
        if row.pod != pod.id {
            return Err(wrong("is in another sandbox"));
        }
        if row.state() != ContainerState::Running {
            return Err(wrong("is not running"));
        }
        Ok(row.pid)
    }

    /// containerd's record of it, so that its clients see what the kubelet runs.
    fn record(&self, row: &Container, pod: &Pod, spec: String) -> Result<()> {
        let runtime = self.config.runtime(&row.handler)?;
        let owner = pod.mappings().map_or((0, 0), |(uids, gids)| (uids.host_id, gids.host_id));
        let mut labels = row.config().labels.clone();
        labels.insert("io.cri-containerd.kind".into(), "container".into());
        labels.retain(|key, value| key.len() + value.len() <= 4096);
        self.parts.containers.create(
            &namespace(),
            containers::Container {
                id: row.id.clone(),
                labels,
                image: row.image_ref.clone(),
                runtime: Some(containers::container::Runtime {
                    name: runtime.r#type.clone(),
                    options: Some(runtime.options(self.config.systemd_cgroup, owner)),
                }),
                spec: Some(Any { type_url: SPEC.into(), value: spec.into_bytes() }),
                snapshotter: OVERLAY.into(),
                snapshot_key: row.id.clone(),
                sandbox: pod.id.clone(),
                ..containers::Container::default()
            },
        )?;
        Ok(())
    }

    /// What to mount as the container's root.
    pub(super) fn root_of(&self, id: &str) -> Result<Vec<Mount>> {
        self.parts.snapshots.mounts(&namespace(), OVERLAY, id)
    }

    async fn unmake(&self, container: &Arc<Record<Container>>) -> Result<()> {
        self.remove_traces_of(container).await
    }
}

/// In the word that kubelets look for.
fn unmountable(target: &str, error: &Error) -> Error {
    Error::Unknown(format!("ImageVolumeMountFailed: mounts: {target}: {error}"))
}

/// A container has its pod's ids: one that asks for others is refused, one that asks for none has them.
fn check_users(pod: &Pod, config: &pb::ContainerConfig) -> Result<()> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let (own, asked) = (pod.namespaces().userns_options, security.namespace_options.unwrap_or_default().userns_options);
    let host =
        |users: &Option<pb::UserNamespace>| users.as_ref().is_none_or(|users| users.mode() == pb::NamespaceMode::Node);
    match &asked {
        Some(users) if users.mode() == pb::NamespaceMode::Node && host(&own) => Ok(()),
        Some(users) if users.uids.is_empty() && users.gids.is_empty() && host(&own) => Ok(()),
        Some(_) if asked != own => Err(Error::InvalidArgument(
            "namespace_options.userns_options: user namespace config for sandbox is different from container".into(),
        )),
        _ => Ok(()),
    }
}

/// What a configuration must not be, as far as it shows without the image.
fn check(config: &pb::ContainerConfig) -> Result<()> {
    let wrong = |field: &str, why: &str| Err(Error::InvalidArgument(format!("config.{field}: {why}")));
    match &config.metadata {
        None => return wrong("metadata", "must be set"),
        Some(metadata) if metadata.name.is_empty() => return wrong("metadata.name", "must be set"),
        Some(_) => {}
    }
    for variable in &config.envs {
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) || variable.value.contains(&0) {
            return wrong("envs", &format!("{:?} is no name of a variable", variable.key));
        }
    }
    Ok(())
}

/// Where the log goes: below the pod's folder, whatever the container's part of the path says.
fn log_path(pod: &pb::PodSandboxConfig, config: &pb::ContainerConfig) -> Result<String> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    let below = Path::new(&config.log_path);
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || config.log_path.chars().any(char::is_control) {
        return Err(Error::InvalidArgument(format!(
            "config.log_path: {:?} does not lie below the sandbox's log_directory",
            config.log_path
        )));
    }
    Ok(Path::new(&pod.log_directory).join(below).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_lies_below_its_pods_folder_or_nowhere() {
        let path = |folder: &str, log: &str| {
            let pod = pb::PodSandboxConfig { log_directory: folder.into(), ..Default::default() };
            log_path(&pod, &pb::ContainerConfig { log_path: log.into(), ..Default::default() })
        };
        assert_eq!(path("/logs", "c/0.log").unwrap(), "/logs/c/0.log");
        assert_eq!(path("", "c/0.log").unwrap(), "");
        assert_eq!(path("/logs", "").unwrap(), "");
        for bad in ["../x", "/etc/passwd", "a/../../x", "a\nb"] {
            assert!(path("/logs", bad).is_err(), "{bad}");
        }
    }
}
