//! From a pod's configuration, as CRI has it, to the runtime's `config.json`.
//!
//! What is not ours to do is left out: names, DNS and ports of the pod are the daemon's, limits are those of the cgroup
//! above, which the kubelet makes. What cannot be is refused by the field's name.
//!
//! Source: Kubernetes cri-api `runtime/v1/api.proto`; containerd `internal/cri/server/podsandbox/sandbox_run_linux.go`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tare_proto::runtime::v1::security_profile::ProfileType;
use tare_proto::runtime::v1::{
    IdMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    SecurityProfile, UserNamespace,
};

use super::{root, seccomp};
use crate::error::{Doing as _, Failed};

/// As the kubelet expects it of a sandbox: to be killed last.
const OOM_SCORE: i32 = -998;
/// Who runs as nobody in particular, like pause images do.
const USER: i64 = 65535;

/// What the pod's configuration does not say.
pub struct Surroundings<'a> {
    pub id: &'a str,
    /// Empty: the pod is in the host's network, or gets an empty one.
    pub netns: &'a str,
    /// The user namespace that owns it, if it is not ours.
    pub userns: Option<String>,
    /// The pod's `/dev/shm`.
    pub shm: Option<PathBuf>,
    pub annotations: &'a HashMap<String, String>,
    /// The lowest score that we may set.
    pub lowest_oom_score: i32,
}

#[derive(Debug, thiserror::Error)]
pub enum Bad {
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
    #[error("linux.security_context.seccomp.localhost_ref {path}: {error}")]
    Profile { path: String, error: serde_json::Error },
    #[error(transparent)]
    Failed(#[from] Failed),
}

fn bad(field: &'static str, reason: impl Into<String>) -> Bad {
    Bad::Field { field, reason: reason.into() }
}

/// # Errors
/// A field has a value that cannot be.
pub fn of(pod: &PodSandboxConfig, around: &Surroundings<'_>) -> Result<Value, Bad> {
    let linux = pod.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let modes = Modes::of(&security.namespace_options.clone().unwrap_or_default())?;
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "process": process(&security, &modes, around)?,
        "root": {"path": root::FOLDER, "readonly": true},
        "mounts": mounts(&modes, around),
        "annotations": annotations(pod, &linux, around),
        "linux": {
            "namespaces": namespaces(&modes, around),
            "sysctl": linux.sysctls,
            // No share of the processor is set: it sleeps, and when it is to end it shall not have to wait for its turn.
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    });
    if !pod.hostname.is_empty() && !modes.host_network {
        spec["hostname"] = json!(pod.hostname);
    }
    if !linux.cgroup_parent.is_empty() {
        spec["linux"]["cgroupsPath"] = json!(cgroups_path(&linux.cgroup_parent, around.id));
    }
    if let (Some((uids, gids)), None) = (&modes.mappings, &around.userns) {
        spec["linux"]["uidMappings"] = json!([mapping(uids)]);
        spec["linux"]["gidMappings"] = json!([mapping(gids)]);
    }
    if let Some(profile) = seccomp_of(&security)? {
        spec["linux"]["seccomp"] = profile;
    }
    Ok(spec)
}

/// What the pod has of its own.
struct Modes {
    host_network: bool,
    host_pid: bool,
    host_ipc: bool,
    /// The one mapping of user and of group ids, where the pod has its own.
    mappings: Option<(IdMapping, IdMapping)>,
}

impl Modes {
    fn of(options: &NamespaceOption) -> Result<Modes, Bad> {
        let is_host = |field, mode: i32| match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Node) => Ok(true),
            // Of its own for each container: the pod has one all the same, and nobody joins it.
            Ok(NamespaceMode::Pod | NamespaceMode::Container) => Ok(false),
            _ => Err(bad(field, "POD, CONTAINER and NODE are for pods")),
        };
        Ok(Modes {
            host_network: is_host("linux.security_context.namespace_options.network", options.network)?,
            host_pid: is_host("linux.security_context.namespace_options.pid", options.pid)?,
            host_ipc: is_host("linux.security_context.namespace_options.ipc", options.ipc)?,
            mappings: options.userns_options.as_ref().map(mappings).transpose()?.flatten(),
        })
    }
}

fn mappings(user: &UserNamespace) -> Result<Option<(IdMapping, IdMapping)>, Bad> {
    const FIELD: &str = "linux.security_context.namespace_options.userns_options";
    match NamespaceMode::try_from(user.mode) {
        Ok(NamespaceMode::Node) if user.uids.is_empty() && user.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err(bad(FIELD, "mappings need the mode POD")),
        Ok(NamespaceMode::Pod) => match (user.uids.as_slice(), user.gids.as_slice()) {
            ([uids], [gids]) => Ok(Some((*uids, *gids))),
            _ => Err(bad(FIELD, "exactly one mapping of uids and one of gids is supported")),
        },
        _ => Err(bad(FIELD, "POD and NODE are supported")),
    }
}

fn mapping(ids: &IdMapping) -> Value {
    json!({"containerID": ids.container_id, "hostID": ids.host_id, "size": ids.length})
}

fn process(security: &LinuxSandboxSecurityContext, modes: &Modes, around: &Surroundings<'_>) -> Result<Value, Bad> {
    let own_ids = modes.mappings.is_some() || around.userns.is_some();
    let default = if own_ids { 0 } else { USER }; // 0 is mapped wherever there are mappings
    let id = |field, given: Option<i64>| {
        let id = given.unwrap_or(default);
        u32::try_from(id).map_err(|_| bad(field, format!("{id} is no id")))
    };
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(bad("linux.security_context.run_as_group", "it needs run_as_user"));
    }
    let groups = security.supplemental_groups.iter();
    let groups: Vec<u32> =
        groups.map(|group| id("linux.security_context.supplemental_groups", Some(*group))).collect::<Result<_, _>>()?;
    let uid = id("linux.security_context.run_as_user", security.run_as_user.map(|user| user.value))?;
    let gid = match (&security.run_as_user, &security.run_as_group) {
        (Some(_), None) => 0,
        (_, group) => id("linux.security_context.run_as_group", group.map(|group| group.value))?,
    };
    let none: [&str; 0] = [];
    let mut process = json!({
        "user": {"uid": uid, "gid": gid, "additionalGids": groups},
        "args": ["/pause"],
        "env": ["PATH=/"],
        "cwd": "/",
        "noNewPrivileges": true,
        "capabilities": {"bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none},
        "oomScoreAdj": OOM_SCORE.max(around.lowest_oom_score),
    });
    if let Some(options) = security.selinux_options.as_ref().filter(|_| Path::new("/sys/fs/selinux/enforce").exists()) {
        let parts = [&options.user, &options.role, &options.r#type, &options.level];
        if parts.iter().any(|part| part.is_empty()) {
            return Err(bad("linux.security_context.selinux_options", "user, role, type and level must all be given"));
        }
        process["selinuxLabel"] = json!(parts.map(String::as_str).join(":"));
    }
    if let Some(profile) = security.apparmor.as_ref()
        && profile.profile_type() == ProfileType::Localhost
    {
        process["apparmorProfile"] = json!(profile.localhost_ref);
    }
    Ok(process)
}

/// The init has use for none of them; runtimes have.
fn mounts(modes: &Modes, around: &Surroundings<'_>) -> Value {
    let proc = if modes.host_pid && modes.mappings.is_some() {
        // A user namespace may mount a procfs only of a PID namespace of its own: proc(5).
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "nosuid", "noexec", "nodev"]})
    } else {
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]})
    };
    let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]});
    let shm = around.shm.as_ref().filter(|_| !modes.host_ipc).map(|source| {
        json!({"destination": "/dev/shm", "type": "bind", "source": source,
            "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]})
    });
    Value::Array([Some(proc), Some(dev), shm].into_iter().flatten().collect())
}

fn namespaces(modes: &Modes, around: &Surroundings<'_>) -> Value {
    let new = |kind: &str| json!({"type": kind});
    let mut namespaces = vec![new("mount")];
    namespaces.extend((!modes.host_ipc).then(|| new("ipc")));
    namespaces.extend((!modes.host_pid).then(|| new("pid")));
    if !modes.host_network {
        namespaces.push(new("uts"));
        namespaces.push(match around.netns {
            "" => new("network"),
            path => json!({"type": "network", "path": path}),
        });
    }
    match &around.userns {
        Some(path) => namespaces.push(json!({"type": "user", "path": path})),
        None => namespaces.extend(modes.mappings.is_some().then(|| new("user"))),
    }
    Value::Array(namespaces)
}

/// As containerd names it: for a slice in systemd's manner, else as a folder.
fn cgroups_path(parent: &str, id: &str) -> String {
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => Path::new(parent).join(id).display().to_string(),
    }
}

/// What node agents look for, in containerd's words; then what the daemon passes on.
fn annotations(pod: &PodSandboxConfig, linux: &LinuxPodSandboxConfig, around: &Surroundings<'_>) -> Value {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let mut all: BTreeMap<String, String> =
        around.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut add = |name: &str, value: String| all.insert(format!("io.kubernetes.cri.{name}"), value);
    add("container-type", "sandbox".into());
    add("sandbox-id", around.id.into());
    add("sandbox-name", metadata.name);
    add("sandbox-namespace", metadata.namespace);
    add("sandbox-uid", metadata.uid);
    add("sandbox-log-directory", pod.log_directory.clone());
    if let Some(resources) = &linux.resources {
        add("sandbox-cpu-period", resources.cpu_period.to_string());
        add("sandbox-cpu-quota", resources.cpu_quota.to_string());
        add("sandbox-cpu-shares", resources.cpu_shares.to_string());
        add("sandbox-memory", resources.memory_limit_in_bytes.to_string());
    }
    Value::Object(all.into_iter().map(|(key, value)| (key, Value::String(value))).collect::<Map<_, _>>())
}

fn seccomp_of(security: &LinuxSandboxSecurityContext) -> Result<Option<Value>, Bad> {
    if security.privileged {
        return Ok(None);
    }
    let profile = security.seccomp.clone().or_else(|| named(&security.seccomp_profile_path));
    let Some(profile) = profile else { return Ok(None) };
    Ok(match profile.profile_type() {
        ProfileType::Unconfined => None,
        ProfileType::RuntimeDefault => Some(seccomp::default()),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.trim_start_matches("localhost/").to_owned();
            let text = fs::read(&path).doing(|| format!("reading the seccomp profile {path}"))?;
            Some(serde_json::from_slice(&text).map_err(|error| Bad::Profile { path, error })?)
        }
    })
}

/// The field's older form: one string.
fn named(path: &str) -> Option<SecurityProfile> {
    let (kind, localhost_ref) = match path {
        "" | "unconfined" => return None,
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, String::new()),
        path => (ProfileType::Localhost, path.to_owned()),
    };
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut PodSandboxConfig, &mut LinuxSandboxSecurityContext)) -> Result<Value, String> {
        let mut pod = PodSandboxConfig { hostname: "pod".into(), ..PodSandboxConfig::default() };
        let mut security = LinuxSandboxSecurityContext::default();
        change(&mut pod, &mut security);
        pod.linux.get_or_insert_default().security_context = Some(security);
        let around = Surroundings {
            id: "one",
            netns: "/run/netns/a",
            userns: None,
            shm: Some("/b/shm".into()),
            annotations: &HashMap::from([("a".to_owned(), "b".to_owned())]),
            lowest_oom_score: -500,
        };
        of(&pod, &around).map_err(|error| error.to_string())
    }

    fn kinds(spec: &Value) -> Vec<&str> {
        spec["linux"]["namespaces"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect()
    }

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> Option<NamespaceOption> {
        Some(NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..NamespaceOption::default()
        })
    }

    #[test]
    fn a_pod_has_what_is_not_the_node_s() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let own = spec(|_, _| {}).unwrap();
        assert_eq!(kinds(&own), ["mount", "ipc", "pid", "uts", "network"]);
        assert_eq!(own["linux"]["namespaces"][4]["path"], "/run/netns/a");
        assert_eq!((&own["hostname"], &own["process"]["oomScoreAdj"]), (&json!("pod"), &json!(-500)));
        let node = spec(|_, security| security.namespace_options = options(Node, Node, Node)).unwrap();
        assert_eq!((kinds(&node), node.get("hostname")), (vec!["mount"], None));
        let apart = spec(|_, security| security.namespace_options = options(Pod, Container, Pod)).unwrap();
        assert_eq!(kinds(&apart), kinds(&own));
        let error = spec(|_, security| security.namespace_options = options(Pod, Target, Pod)).unwrap_err();
        assert_eq!(error, "linux.security_context.namespace_options.pid: POD, CONTAINER and NODE are for pods");
    }

    #[test]
    fn ids_of_its_own_take_one_mapping_of_each_kind() {
        let ids = |uids: usize, mode: NamespaceMode| {
            spec(|_, security| {
                let mapping = IdMapping { container_id: 0, host_id: 100_000, length: 65536 };
                let user = UserNamespace { mode: mode.into(), uids: vec![mapping; uids], gids: vec![mapping; uids] };
                security.namespace_options =
                    Some(NamespaceOption { userns_options: Some(user), ..NamespaceOption::default() });
            })
        };
        let one = ids(1, NamespaceMode::Pod).unwrap();
        assert!(kinds(&one).contains(&"user"));
        assert_eq!(one["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]));
        assert_eq!(one["process"]["user"]["uid"], 0);
        let refused = ids(2, NamespaceMode::Pod).unwrap_err();
        assert!(refused.ends_with("exactly one mapping of uids and one of gids is supported"), "{refused}");
        assert!(ids(1, NamespaceMode::Node).is_err());
        assert!(!kinds(&ids(0, NamespaceMode::Node).unwrap()).contains(&"user"));
    }

    #[test]
    fn its_cgroup_lies_where_the_kubelet_says() {
        for (parent, path) in [
            ("/kubepods/pod1", "/kubepods/pod1/one"),
            ("kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:one"),
            ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:one"),
        ] {
            let spec = spec(|pod, _| pod.linux.get_or_insert_default().cgroup_parent = parent.into()).unwrap();
            assert_eq!(spec["linux"]["cgroupsPath"], path);
        }
    }

    #[test]
    fn a_profile_is_the_default_a_file_or_none() {
        let with = |kind: ProfileType, place: &str| {
            let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: place.into() };
            spec(|_, security| security.seccomp = Some(profile))
        };
        assert_eq!(spec(|_, _| {}).unwrap()["linux"].get("seccomp"), None);
        assert_eq!(with(ProfileType::Unconfined, "").unwrap()["linux"].get("seccomp"), None);
        let default = with(ProfileType::RuntimeDefault, "").unwrap();
        assert_eq!(default["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"defaultAction":"SCMP_ACT_LOG"}"#).unwrap();
        let read = with(ProfileType::Localhost, file.path().to_str().unwrap()).unwrap();
        assert_eq!(read["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_LOG");
        let missing = with(ProfileType::Localhost, "/nonexistent/p.json").unwrap_err();
        assert_eq!(missing, "reading the seccomp profile /nonexistent/p.json: no such file or directory");
    }
}
