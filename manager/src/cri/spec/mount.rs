//! What is mounted: kernel file systems, the pod's files, what CRI asks for, each place once.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

use super::{Bind, Given};
use crate::error::{Doing as _, Error, Result};

pub struct Mounts {
    pub all: Vec<Value>,
    /// Of the whole root: what is mounted in it can be no more shared than it is itself.
    pub propagation: Option<&'static str>,
}

pub fn mounts(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Result<Mounts> {
    let mut asked: Vec<Asked> =
        given.config.mounts.iter().filter(|mount| mount.image.is_none()).map(Asked::of).collect::<Result<_>>()?;
    asked.extend(given.more.iter().map(|bind| Asked::bind(bind, given)));
    let mut propagation = Propagation::Private;
    for own in own_files(given, security) {
        if !asked.iter().any(|mount| mount.target == own.target) {
            asked.push(own);
        }
    }
    // A mount lies on the one above it: those nearer to the root come first.
    asked.sort_by_key(|mount| mount.target.components().count());
    let mut all: Vec<Value> = kernel(given, security)
        .into_iter()
        .filter(|mount| {
            let target = Path::new(mount["destination"].as_str().unwrap_or_default());
            let below_dev = target.starts_with("/dev") && target != Path::new("/dev");
            !asked.iter().any(|one| one.target == target || below_dev && one.target == Path::new("/dev"))
        })
        .collect();
    for mount in &asked {
        all.push(mount.written(given)?);
        propagation = propagation.max(mount.propagation);
    }
    Ok(Mounts { all, propagation: propagation.of_the_root() })
}

/// Host folders that CRI's mounts name and that are not there. containerd makes them, and pods count on it.
pub fn missing_sources(config: &pb::ContainerConfig) -> Vec<PathBuf> {
    let named = config.mounts.iter().filter(|mount| mount.image.is_none() && !mount.host_path.is_empty());
    named.map(|mount| PathBuf::from(&mount.host_path)).filter(|path| !path.exists() && !path.is_symlink()).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Propagation {
    Private,
    Slave,
    Shared,
}

impl Propagation {
    fn word(self) -> &'static str {
        match self {
            Propagation::Private => "rprivate",
            Propagation::Slave => "rslave",
            Propagation::Shared => "rshared",
        }
    }

    fn of_the_root(self) -> Option<&'static str> {
        (self != Propagation::Private).then(|| self.word())
    }
}

/// A bind mount, checked.
struct Asked {
    source: PathBuf,
    target: PathBuf,
    options: Vec<&'static str>,
    propagation: Propagation,
    /// User and group ids.
    mappings: (Vec<pb::IdMapping>, Vec<pb::IdMapping>),
}

impl Asked {
    fn of(mount: &pb::Mount) -> Result<Asked> {
        let at = &mount.container_path;
        let wrong = |field: &str, why: &str| Error::InvalidArgument(format!("mounts: {at}: {field}: {why}"));
        let propagation = match pb::MountPropagation::try_from(mount.propagation) {
            Ok(pb::MountPropagation::PropagationPrivate) => Propagation::Private,
            Ok(pb::MountPropagation::PropagationHostToContainer) => Propagation::Slave,
            Ok(pb::MountPropagation::PropagationBidirectional) => Propagation::Shared,
            Err(_) => return Err(wrong("propagation", &format!("{} is none", mount.propagation))),
        };
        if mount.recursive_read_only && !mount.readonly {
            return Err(wrong("recursive_read_only", "it needs readonly"));
        }
        if mount.recursive_read_only && propagation != Propagation::Private {
            return Err(wrong("recursive_read_only", "it needs PROPAGATION_PRIVATE"));
        }
        if !Path::new(&mount.host_path).is_absolute() {
            return Err(wrong("host_path", &format!("{:?} is not absolute", mount.host_path)));
        }
        let source = fs::canonicalize(&mount.host_path)
            .doing(|| format!("mounts: {at}: resolving symlink {:?}", mount.host_path))?;
        check_sharing(&source, propagation).map_err(|why| wrong("propagation", &why))?;
        let mode = match (mount.readonly, mount.recursive_read_only) {
            (false, _) => "rw",
            (true, false) => "ro",
            (true, true) => "rro",
        };
        Ok(Asked {
            source,
            target: cleaned(at).ok_or_else(|| wrong("container_path", "it must be absolute"))?,
            options: vec!["rbind", propagation.word(), mode],
            propagation,
            mappings: (mount.uid_mappings.clone(), mount.gid_mappings.clone()),
        })
    }

    fn bind(bind: &Bind, given: &Given<'_>) -> Asked {
        let mappings = given.mappings().filter(|_| bind.mapped);
        Asked {
            source: bind.source.clone(),
            target: cleaned(&bind.target).unwrap_or_else(|| PathBuf::from(&bind.target)),
            options: vec!["rbind", "rprivate", if bind.read_only { "ro" } else { "rw" }],
            propagation: Propagation::Private,
            mappings: mappings.map(|(uids, gids)| (vec![uids], vec![gids])).unwrap_or_default(),
        }
    }

    fn written(&self, given: &Given<'_>) -> Result<Value> {
        let (uids, gids) = &self.mappings;
        let mut mount = json!({
            "destination": self.target, "type": "bind", "source": self.source, "options": self.options,
        });
        if uids.is_empty() && gids.is_empty() {
            return Ok(mount);
        }
        if given.mappings().is_none() {
            let text = format!("mounts: {}: uidMappings: the pod has no user namespace", self.target.display());
            return Err(Error::InvalidArgument(text));
        }
        let all = |mappings: &[pb::IdMapping]| mappings.iter().map(mapping).collect::<Vec<_>>();
        (mount["uidMappings"], mount["gidMappings"]) = (json!(all(uids)), json!(all(gids)));
        Ok(mount)
    }
}

pub fn mapping(ids: &pb::IdMapping) -> Value {
    json!({"containerID": ids.container_id, "hostID": ids.host_id, "size": ids.length})
}

/// A path without `.`, `..` and repeated slashes, so that two spellings of a place are one.
fn cleaned(path: &str) -> Option<PathBuf> {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path.starts_with('/').then_some(clean)
}

/// A mount passes on only what the one it is of passes on.
fn check_sharing(source: &Path, propagation: Propagation) -> std::result::Result<(), String> {
    if propagation == Propagation::Private {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let (mut best, mut tags) = (0, "");
    for line in table.lines() {
        let (Some(at), Some((fields, _))) = (line.split(' ').nth(4), line.split_once(" - ")) else { continue };
        let at = unescaped(at);
        if source.starts_with(&at) && at.len() >= best {
            best = at.len();
            tags = fields.splitn(7, ' ').nth(6).unwrap_or_default();
        }
    }
    let shared = tags.contains("shared:");
    match propagation {
        Propagation::Shared if !shared => {
            Err(format!("path {} is mounted on a mount that is not shared", source.display()))
        }
        Propagation::Slave if !shared && !tags.contains("master:") => {
            Err(format!("path {} is mounted on a mount that is neither shared nor a slave", source.display()))
        }
        _ => Ok(()),
    }
}

/// Spaces and the like are octal. Source: proc_pid_mountinfo(5).
fn unescaped(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        let octal = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                bytes = &rest[3..];
            }
            None => {
                out.push(*first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The pod's files, for those that CRI does not mount itself.
fn own_files(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Vec<Asked> {
    let files = [
        (&given.files.hostname, "/etc/hostname"),
        (&given.files.hosts, "/etc/hosts"),
        (&given.files.resolv_conf, "/etc/resolv.conf"),
    ];
    let there = files.into_iter().filter(|(source, _)| source.exists());
    let mut all: Vec<Asked> = there
        .map(|(source, target)| {
            let (source, target) = (source.clone(), target.into());
            Asked::bind(&Bind { source, target, read_only: security.readonly_rootfs, mapped: true }, given)
        })
        .collect();
    let of_the_host = given.pod.namespaces().ipc() == pb::NamespaceMode::Node;
    let shm = if of_the_host { PathBuf::from("/dev/shm") } else { given.files.shm.clone() };
    all.push(Asked::bind(&Bind { source: shm, target: "/dev/shm".into(), read_only: false, mapped: false }, given));
    all
}

fn kernel(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Vec<Value> {
    let mount = |kind: &str, target: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mode = if security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    // A user namespace may mount a sysfs only of a network namespace of its own: the host's is bound instead.
    if given.mappings().is_some() && given.pod.is_on_host_network() {
        all.push(json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}));
    } else {
        all.push(mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", mode]));
        all.push(mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", mode]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_a_place_are_one() {
        for (path, clean) in [("/a//b/", "/a/b"), ("/a/./../b", "/b"), ("/../..", "/"), ("/", "/")] {
            assert_eq!(cleaned(path).unwrap(), Path::new(clean), "{path}");
        }
        assert_eq!(cleaned("a"), None);
        assert_eq!(unescaped(r"/a\040b\011"), "/a b\t");
    }

    #[test]
    fn a_mount_that_cannot_be_is_refused_by_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |change: &dyn Fn(&mut pb::Mount)| {
            let mut mount = pb::Mount {
                container_path: "/mnt".into(),
                host_path: dir.path().display().to_string(),
                ..pb::Mount::default()
            };
            change(&mut mount);
            Asked::of(&mount).map(|mount| mount.options.join(" ")).map_err(|error| error.to_string())
        };
        assert_eq!(mount(&|_| ()).unwrap(), "rbind rprivate rw");
        assert_eq!(mount(&|m| (m.readonly, m.recursive_read_only) = (true, true)).unwrap(), "rbind rprivate rro");
        let refused = [
            (mount(&|m| m.recursive_read_only = true), "recursive_read_only: it needs readonly"),
            (mount(&|m| m.container_path = "mnt".into()), "container_path: it must be absolute"),
            (mount(&|m| m.host_path = "x".into()), "host_path: \"x\" is not absolute"),
            (mount(&|m| m.host_path = "/nonexistent".into()), "no such file or directory"),
            (mount(&|m| m.propagation = 9), "propagation: 9 is none"),
        ];
        for (refused, why) in refused {
            let error = refused.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
