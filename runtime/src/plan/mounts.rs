//! The mounts of the specification, one after the other.

use std::cell::OnceCell;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;

use super::cgroup_mount::{self, CgroupView};
use super::filesystem::target;
use super::{Inside, Mount, Tmpfs, What, c_string};
use crate::bundle::{Bundle, Error, cleaned, refused};
use crate::child::user_namespace;
use crate::error::{Doing as _, Failed};
use crate::mount::options::{Depth, Options, PRIVATE, RDONLY, SHARED, SLAVE, UNBINDABLE};
use crate::mount::root::Missing;
use crate::mount::tree::{self, FileSystem};
use crate::spec;

pub fn is_bind(mount: &spec::Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|word| word == "bind" || word == "rbind")
}

/// Adds what one mount of the specification comes to. Sources on the host are cloned here, so that they are looked up
/// once, by us.
pub fn add(
    mounts: &mut Vec<Mount>,
    bundle: &Bundle,
    index: usize,
    mount: &spec::Mount,
    cgroups: &CgroupView<'_>,
) -> Result<(), Error> {
    let field = format!("mounts[{index}]");
    let options = Options::read(&mount.options);
    if !options.remount && !is_bind(mount) && is_cgroup(mount, cgroups) {
        return cgroup_mount::add(mounts, &field, mount, &options, cgroups);
    }
    let mut missing = Missing::Folder;
    let mut propagation = options.propagation.clone();
    let what = if options.remount {
        missing = Missing::Refused;
        What::Remount(data(&field, &options)?, options.here)
    } else if is_bind(mount) {
        if let Some(first) = bound_as(&propagation, &bundle.linux().rootfs_propagation) {
            propagation.insert(0, (first, Depth::WithAllBelow));
        }
        let what = bind(bundle, mount, options)?;
        if let What::Tree(tree) = &what
            && !is_folder(tree).doing(|| format!("looking at {}", mount.source))?
        {
            missing = Missing::File;
        }
        what
    } else {
        file_system(&field, mount, &options, &bundle.linux().mount_label)?
    };
    mounts.push(Mount {
        target: target(&field, &mount.destination)?,
        missing,
        in_procfs: may_lie_in_procfs(mount),
        ordinary: matches!(mount.kind.as_str(), "proc" | "sysfs") && !is_bind(mount),
        what,
        propagation,
    });
    Ok(())
}

/// The destination, which was checked, says so itself.
fn may_lie_in_procfs(mount: &spec::Mount) -> bool {
    let destination = cleaned(&mount.destination);
    destination == "/proc" || destination.starts_with("/proc/")
}

/// How a bind mount travels before its own options count: as the container's root does, so that nothing mounted inside
/// comes out unless somebody asked for that; none keeps it a peer of its source.
fn bound_as(asked: &[(u64, Depth)], root: &str) -> Option<u64> {
    let shared = |kind: u64| kind == SHARED;
    match super::propagation(root).flatten() {
        _ if asked.iter().any(|(kind, _)| shared(*kind)) => None,
        Some((kind, _)) if shared(kind) => None,
        Some((PRIVATE | UNBINDABLE, _)) => Some(PRIVATE),
        _ => Some(SLAVE),
    }
}

fn is_cgroup(mount: &spec::Mount, cgroups: &CgroupView<'_>) -> bool {
    mount.kind == "cgroup" || (mount.kind == "cgroup2" && !cgroups.namespace)
}

fn file_system(field: &str, mount: &spec::Mount, options: &Options, label: &str) -> Result<What, Error> {
    let source = if mount.source.is_empty() { &mount.kind } else { &mount.source };
    let mut files = FileSystem {
        kind: c_string(&format!("{field}.type"), &mount.kind)?,
        source: c_string(&format!("{field}.source"), source)?,
        data: data(field, options)?,
        attributes: options.here.set | options.below.set,
    };
    let labelled = !matches!(mount.kind.as_str(), "proc" | "sysfs" | "mqueue");
    if labelled && !label.is_empty() && super::label::selinux() {
        files.data.push((c"context".to_owned(), Some(c_string("linux.mountLabel", label)?)));
    }
    if mount.kind != "tmpfs" {
        return Ok(What::FileSystem(files));
    }
    let later = (files.attributes & RDONLY != 0).then(OnceCell::new);
    files.attributes &= !RDONLY;
    let mode_of_target = !options.data.iter().any(|(key, _)| key == "mode");
    Ok(What::Tmpfs(Tmpfs { files, mode_of_target, copy_up: options.copy_up, later }))
}

fn data(field: &str, options: &Options) -> Result<Vec<(CString, Option<CString>)>, Failed> {
    let field = format!("{field}.options");
    options
        .data
        .iter()
        .map(|(key, value)| {
            Ok((c_string(&field, key)?, value.as_deref().map(|value| c_string(&field, value)).transpose()?))
        })
        .collect()
}

/// A bind mount: cloned from the host and adjusted, ready to be attached; or by the child, if its source is inside.
fn bind(bundle: &Bundle, mount: &spec::Mount, options: Options) -> Result<What, Error> {
    let in_user_namespace = bundle.in_user_namespace();
    let source = bundle.dir.join(&mount.source);
    let depth = options.bind.unwrap_or(Depth::WithAllBelow);
    let id_map = id_map(bundle, mount, &options)?;
    let doing = || format!("error mounting {} at {}", source.display(), mount.destination);
    let inside = Path::new(&cleaned(&source.to_string_lossy())).strip_prefix(&bundle.rootfs).map(Path::to_owned);
    // Only whoever may change the file system's owners can map them, and that is not the container's root.
    if let Ok(inside) = inside
        && !(in_user_namespace && id_map.is_some())
    {
        let source = if inside.as_os_str().is_empty() { Path::new(".") } else { &inside };
        let source = CString::new(source.as_os_str().as_bytes()).map_err(|_| Errno::INVAL).doing(doing)?;
        return Ok(What::Inside(Inside { source, depth, options, user_namespace: in_user_namespace, id_map }));
    }
    let tree = clone_bind(&source, depth).doing(doing)?;
    if cleaned(&mount.destination) == "/proc" && !tree::is_procfs(tree.as_fd()).doing(doing)? {
        return refused("mounts", format!("{} at /proc: only a procfs can be mounted there", source.display()));
    }
    let there = tree::attributes(tree.as_fd()).doing(doing)?;
    let attributes = options.for_bind(there, in_user_namespace).doing(doing)?;
    let set = || format!("error mounting {} at {}: {}", source.display(), mount.destination, mount.options.join(","));
    tree::apply(tree.as_fd(), attributes, Depth::Alone).doing(set)?;
    tree::apply(tree.as_fd(), options.below, Depth::WithAllBelow).doing(set)?;
    if let Some((namespace, depth)) = id_map {
        tree::map_ids(tree.as_fd(), namespace.as_fd(), depth)
            .doing(|| format!("mapping the owners of {} at {}", source.display(), mount.destination))?;
    }
    Ok(What::Tree(tree))
}

pub fn clone_bind(source: &Path, depth: Depth) -> Result<OwnedFd, Errno> {
    let path = CString::new(source.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    tree::clone(CWD, &path, depth)
}

fn is_folder(tree: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory)
}

/// The user namespace whose mappings an id-mapped mount has, and how far down: its own mappings, else the container's.
///
/// Source: runtime-spec config.md, "Mounts", `uidMappings`, `idmap` and `ridmap`.
fn id_map(bundle: &Bundle, mount: &spec::Mount, options: &Options) -> Result<Option<(OwnedFd, Depth)>, Error> {
    let own = !mount.uid_mappings.is_empty();
    if !own && options.id_map.is_none() {
        return Ok(None);
    }
    let linux = bundle.linux();
    let joined = bundle.namespace("user").map(|namespace| namespace.path.as_str()).filter(|path| !path.is_empty());
    let namespace = match joined {
        Some(path) if !own => super::namespaces::open(path, libc::CLONE_NEWUSER as u64, "user")?,
        _ if own => user_namespace::with_mappings(&mount.uid_mappings, &mount.gid_mappings)?,
        _ => user_namespace::with_mappings(&linux.uid_mappings, &linux.gid_mappings)?,
    };
    Ok(Some((namespace, options.id_map.unwrap_or(Depth::Alone))))
}
