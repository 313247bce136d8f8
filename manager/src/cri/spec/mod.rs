//! The runtime specification of a pod's container: image and pod and container configuration, put together.
//!
//! What cannot be is refused by its field before anything is made. A client reads what it asked for as containerd's CRI
//! would have done it.
//!
//! Source: runtime-spec config.md, config-linux.md; cri-api `api.proto`; containerd `internal/cri/server/container_create*.go`,
//! `internal/cri/opts`.

mod apparmor;
mod capability;
mod device;
mod mount;
mod process;
mod profile;
mod resource;
mod selinux;
mod user;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

pub use mount::missing_sources;
pub use profile::Host;
pub use resource::resources;
pub use user::User;

use super::rows;
use crate::cdi;
use crate::error::{Error, Result};

/// What an image says about running it. Source: image-spec config.md.
pub use crate::oci::ImageConfig;

/// All that a specification is made of.
pub struct Given<'a> {
    pub id: &'a str,
    pub pod: &'a rows::Pod,
    pub config: &'a pb::ContainerConfig,
    pub image: &'a ImageConfig,
    pub user: &'a User,
    /// The pod's own files.
    pub files: &'a Files,
    /// Folders for the image's volumes, and mounted images: what CRI's mounts do not say by themselves.
    pub more: &'a [Bind],
    /// Whose PID namespace is joined; the pod's, unless another container is the target.
    pub pid: u32,
    /// Where devices by name are described.
    pub cdi: &'a [PathBuf],
    pub host: &'a Host,
}

/// The pod's files that its containers see; none of them is there for a pod that has the host's.
#[derive(Clone, Debug)]
pub struct Files {
    pub hostname: PathBuf,
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    pub shm: PathBuf,
}

/// A bind mount that the daemon adds.
#[derive(Clone, Debug)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    /// Whether its owners are shown as those of the pod's user namespace.
    pub mapped: bool,
}

impl Given<'_> {
    fn security(&self) -> pb::LinuxContainerSecurityContext {
        self.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }

    fn resources(&self) -> pb::LinuxContainerResources {
        self.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
    }

    /// The one mapping of user and of group ids, where the pod has its own.
    fn mappings(&self) -> Option<(pb::IdMapping, pb::IdMapping)> {
        self.pod.mappings()
    }
}

/// Puts it together.
///
/// # Errors
/// `InvalidArgument` and its like, naming the field.
pub fn spec(given: &Given<'_>) -> Result<Value> {
    let security = given.security();
    if security.privileged && !given.pod.security().privileged {
        let text = "failed to generate spec opts: no privileged container allowed in sandbox";
        return Err(Error::InvalidArgument(text.into()));
    }
    let mounts = mount::mounts(given, &security)?;
    let devices = device::devices(given, &security)?;
    let mut resources = resource::resources(&given.resources(), given.host)?;
    resources["devices"] = devices.rules;
    let mut linux = json!({
        "namespaces": namespaces(given, &security)?,
        "resources": resources,
        "cgroupsPath": cgroups_path(given.pod.cgroup_parent(), given.id),
        "maskedPaths": security.masked_paths,
        "readonlyPaths": security.readonly_paths,
        "devices": devices.nodes,
    });
    if let Some((uids, gids)) = given.mappings() {
        // Those of the namespace that is joined, told again so that the daemon knows whom to let into the bundle.
        linux["uidMappings"] = json!([mount::mapping(&uids)]);
        linux["gidMappings"] = json!([mount::mapping(&gids)]);
    }
    if let Some(propagation) = mounts.propagation {
        linux["rootfsPropagation"] = json!(propagation);
    }
    if !security.privileged
        && let Some(seccomp) = profile::seccomp(&security, &process::capabilities(&security)?)?
    {
        linux["seccomp"] = seccomp;
    }
    if let Some(label) = selinux::label(&security, given.pod, given.host)? {
        linux["mountLabel"] = json!(label.mount);
    }
    let mut spec = json!({
        "ociVersion": "1.2.1",
        "process": process::process(given, &security)?,
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": mounts.all,
        "annotations": annotations(given),
        "linux": linux,
    });
    cdi::inject(&mut spec, &named_devices(given.config)?, given.cdi)?;
    Ok(spec)
}

/// Devices by name, of the field first.
fn named_devices(config: &pb::ContainerConfig) -> Result<Vec<String>> {
    let mut names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    names.extend(cdi::annotated(&config.annotations)?);
    Ok(names)
}

/// What the container shares with its pod, by the process that lives in it.
fn namespaces(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Result<Value> {
    let options = security.namespace_options.clone().unwrap_or_default();
    let pod = given.pod.pid;
    let of = |kind: &str, pid: u32, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    let mut namespaces =
        vec![json!({"type": "mount"}), of("network", pod, "net"), of("ipc", pod, "ipc"), of("uts", pod, "uts")];
    namespaces.push(match options.pid() {
        pb::NamespaceMode::Container => json!({"type": "pid"}),
        pb::NamespaceMode::Pod | pb::NamespaceMode::Target | pb::NamespaceMode::Node => of("pid", given.pid, "pid"),
    });
    if given.mappings().is_some() {
        namespaces.push(of("user", pod, "user"));
    }
    if given.host.unified && !security.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Ok(Value::Array(namespaces))
}

/// In systemd's words below a slice, else a folder.
pub fn cgroups_path(parent: &str, id: &str) -> String {
    let base = Path::new(parent).file_name().and_then(|name| name.to_str());
    match base {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        Some(_) => Path::new(parent).join(id).display().to_string(),
        // One folder, so that none is left above it when the container is gone.
        None => format!("/{}-{id}", super::NAMESPACE),
    }
}

/// What node agents and runtimes look for, in containerd's words.
pub fn annotations(given: &Given<'_>) -> Value {
    let pod = given.pod.config().metadata.clone().unwrap_or_default();
    let metadata = given.config.metadata.clone().unwrap_or_default();
    let image = given.config.image.clone().unwrap_or_default();
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": given.pod.id,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.container-name": metadata.name,
        "io.kubernetes.cri.image-name": if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
    })
}

#[cfg(test)]
mod tests;
