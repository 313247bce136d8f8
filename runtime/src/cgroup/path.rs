//! Where a container's cgroups are: `linux.cgroupsPath` on this host.

use std::path::{Component, Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Error, file};
use crate::error::Doing;
use crate::spec::Resources;

/// Where all systems mount cgroups.
const MOUNT: &str = "/sys/fs/cgroup";

// linux/magic.h
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The directories of one container. They need not exist; that they are below the cgroup mounts is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CgroupPath {
    V1 { hierarchies: Vec<Hierarchy> },
    V2 { root: PathBuf, path: PathBuf },
}

/// A hierarchy of version 1, and the container's place in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hierarchy {
    /// As in `/proc/self/cgroup`: names of controllers, or one `name=…`.
    pub controllers: Vec<String>,
    pub root: PathBuf,
    pub path: PathBuf,
}

impl Hierarchy {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

impl CgroupPath {
    /// `path` is `linux.cgroupsPath`. An absolute one is below the mount of each hierarchy. A relative one is below the
    /// cgroup that we are in; on version 2, where a cgroup with processes may not hand controllers down, beside it. Without
    /// one, the container's id stands for it.
    ///
    /// Source: runtime-spec config-linux.md, "Cgroups Path"; runc does the same.
    pub fn resolve(path: Option<&str>, id: &str) -> Result<CgroupPath, Error> {
        let path = Path::new(path.filter(|path| !path.is_empty()).unwrap_or(id));
        let field = "linux.cgroupsPath";
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Error::refused(field, format!("{path:?} may not contain ..")));
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(Error::refused(field, "holds a NUL byte"));
        }
        let resolved = match magic(Path::new(MOUNT)) {
            Some(CGROUP2_SUPER_MAGIC) => v2(Path::new(MOUNT), path)?,
            _ => v1(path)?,
        };
        match &resolved {
            CgroupPath::V1 { hierarchies } if hierarchies.is_empty() => {
                Err(Error::refused(field, format!("no cgroups are mounted at {MOUNT}")))
            }
            CgroupPath::V1 { hierarchies } if hierarchies.iter().any(|hierarchy| hierarchy.path == hierarchy.root) => {
                Err(Error::refused(field, "the root cgroup cannot be a container's"))
            }
            CgroupPath::V2 { root, path } if root == path => {
                Err(Error::refused(field, "the root cgroup cannot be a container's"))
            }
            _ => Ok(resolved),
        }
    }

    /// What of it we may make, having no root: all of it below a cgroup that was given to us; on version 1 some hierarchies;
    /// or nothing, and then the container stays where we are.
    ///
    /// # Errors
    /// It has limits and nothing may be made.
    pub fn permitted(self, resources: &Resources) -> Result<Option<CgroupPath>, Error> {
        let permitted = match self {
            CgroupPath::V1 { mut hierarchies } => {
                hierarchies.retain(|hierarchy| may_make(&hierarchy.path));
                (!hierarchies.is_empty()).then_some(CgroupPath::V1 { hierarchies })
            }
            CgroupPath::V2 { root, path } => {
                (may_make(&path) && may_move(&root, &path)).then_some(CgroupPath::V2 { root, path })
            }
        };
        match (&permitted, resources.first_limit()) {
            (None, Some(field)) => Err(Error::refused(
                format!("linux.resources.{field}"),
                "a limit needs a cgroup, and none may be made here without root (is one delegated to this user?)",
            )),
            _ => Ok(permitted),
        }
    }

    /// The same folder below each mount.
    pub fn below_mounts(below: &Path) -> Result<CgroupPath, Error> {
        CgroupPath::resolve(Some(&Path::new("/").join(below).to_string_lossy()), "")
    }

    /// Where this process is: what a container without cgroups of its own stays in.
    pub fn around() -> Result<CgroupPath, Error> {
        let own = own_cgroups()?;
        Ok(match magic(Path::new(MOUNT)) {
            Some(CGROUP2_SUPER_MAGIC) => {
                let root = PathBuf::from(MOUNT);
                let below = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                CgroupPath::V2 { path: clean(&root, Path::new(below)), root }
            }
            _ => v1(Path::new(""))?,
        })
    }

    pub fn is_version_1(&self) -> bool {
        matches!(self, CgroupPath::V1 { .. })
    }

    /// All directories that the container may have.
    pub fn directories(&self) -> Vec<&Path> {
        match self {
            CgroupPath::V1 { hierarchies } => hierarchies.iter().map(|hierarchy| &*hierarchy.path).collect(),
            CgroupPath::V2 { path, .. } => vec![path],
        }
    }
}

fn v2(root: &Path, path: &Path) -> Result<CgroupPath, Error> {
    let below = match path.strip_prefix("/") {
        Ok(below) => below.to_owned(),
        Err(_) => {
            let own = own_cgroups()?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            Path::new(own).parent().unwrap_or(Path::new("")).join(path)
        }
    };
    Ok(CgroupPath::V2 { root: root.to_owned(), path: clean(root, &below) })
}

/// Each hierarchy is looked for where systemd, Debian's cgroupfs-mount and all others mount it, by the names of its
/// controllers; the mount table, which may have thousands of lines, is not read for it.
fn v1(path: &Path) -> Result<CgroupPath, Error> {
    let mut hierarchies = Vec::new();
    for line in own_cgroups()?.lines() {
        // hierarchy-ID:controller-list:cgroup-path, cgroups(7)
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(own)) = (fields.next(), fields.next()) else { continue };
        let root = Path::new(MOUNT).join(controllers.strip_prefix("name=").unwrap_or(controllers));
        if controllers.is_empty() || magic(&root) != Some(CGROUP_SUPER_MAGIC) {
            continue;
        }
        let below = match path.strip_prefix("/") {
            Ok(below) => below.to_owned(),
            Err(_) => Path::new(own.trim_start_matches('/')).join(path),
        };
        let path = clean(&root, &below);
        hierarchies.push(Hierarchy { controllers: controllers.split(',').map(str::to_owned).collect(), root, path });
    }
    Ok(CgroupPath::V1 { hierarchies })
}

/// Whether the directory, or the lowest one that exists on the way to it, can be written.
fn may_make(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| accessible(path, Access::WRITE_OK | Access::EXEC_OK))
}

/// Whether the kernel lets us move a process from where we are: it asks for the lowest cgroup that is above both.
///
/// Source: cgroup-v2.rst, "Delegation Containment".
fn may_move(root: &Path, path: &Path) -> bool {
    let own = unified_of(root, rustix::process::getpid().as_raw_nonzero().get());
    let above = own.as_deref().and_then(|own| own.ancestors().find(|above| path.starts_with(above)));
    above.is_some_and(|above| accessible(&above.join("cgroup.procs"), Access::WRITE_OK))
}

fn accessible(path: &Path, how: Access) -> bool {
    rustix::fs::accessat(rustix::fs::CWD, path, how, rustix::fs::AtFlags::EACCESS).is_ok()
}

fn own_cgroups() -> Result<String, Error> {
    Ok(file::read(Path::new("/proc/self/cgroup")).doing(|| "reading /proc/self/cgroup".into())?)
}

/// Where on version 2 a process is, as far as we can see it.
pub(super) fn unified_of(root: &Path, pid: i32) -> Option<PathBuf> {
    let text = file::read(Path::new(&format!("/proc/{pid}/cgroup"))).ok()?;
    let below = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(clean(root, Path::new(below)))
}

/// `root` and the named parts of `below`: no doubled slashes, no dots.
fn clean(root: &Path, below: &Path) -> PathBuf {
    let mut path = root.to_owned();
    path.extend(below.components().filter(|part| matches!(part, Component::Normal(_))));
    path
}

fn magic(path: &Path) -> Option<u64> {
    match rustix::fs::statfs(path) {
        Ok(found) => Some(found.f_type as u64),
        Err(Errno::NOENT) => None,
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> String {
        CgroupPath::resolve(Some(path), "id").unwrap_err().to_string()
    }

    #[test]
    fn a_path_stays_below_its_mount() {
        assert_eq!(refusal("/a/../../etc"), r#"linux.cgroupsPath: "/a/../../etc" may not contain .."#);
        assert_eq!(refusal("a\0b"), "linux.cgroupsPath: holds a NUL byte");
        assert_eq!(refusal("/"), "linux.cgroupsPath: the root cgroup cannot be a container's");
        assert_eq!(refusal("//./"), "linux.cgroupsPath: the root cgroup cannot be a container's");
    }

    #[test]
    fn an_absolute_path_is_below_each_mount() {
        match CgroupPath::resolve(Some("//tare-test/./x/"), "id").unwrap() {
            CgroupPath::V2 { root, path } => assert_eq!(path, root.join("tare-test/x")),
            CgroupPath::V1 { hierarchies } => {
                for hierarchy in hierarchies {
                    assert_eq!(hierarchy.path, hierarchy.root.join("tare-test/x"));
                }
            }
        }
    }

    #[test]
    fn around_this_process_is_what_the_kernel_says_of_it() {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let around = CgroupPath::around().unwrap();
        let roots: Vec<_> = match &around {
            CgroupPath::V1 { hierarchies } => hierarchies.iter().map(|hierarchy| &hierarchy.root).collect(),
            CgroupPath::V2 { root, .. } => vec![root],
        };
        assert!(!roots.is_empty());
        for (directory, root) in around.directories().iter().zip(roots) {
            let below = format!("/{}", directory.strip_prefix(root).unwrap().display());
            assert!(own.lines().any(|line| line.ends_with(&format!(":{below}"))), "{below} in {own}");
        }
    }

    #[test]
    fn without_a_path_the_id_is_one() {
        let absent = CgroupPath::resolve(None, "some-id").unwrap();
        assert_eq!(absent, CgroupPath::resolve(Some(""), "some-id").unwrap());
        assert_eq!(absent, CgroupPath::resolve(Some("some-id"), "other").unwrap());
        assert_ne!(absent, CgroupPath::resolve(Some("/x/some-id"), "other").unwrap());
    }
}
