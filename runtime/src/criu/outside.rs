//! Mounts and namespaces that a container has and that are not its own.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fstat};

use super::Error;
use super::message::{CgroupRoot, ExternalMount, InheritFd, JoinNamespace, Options};
use crate::bundle::{Bundle, cleaned};
use crate::cgroup::Cgroup;
use crate::child::helper::Point;
use crate::error::{Doing as _, Failed};
use crate::mount::options::{Depth, Options as MountOptions};
use crate::mount::root::{Missing, Target, open, open_host_folder};
use crate::plan::{bind_folders, clone_bind, is_bind};
use crate::spec::Mount;
use crate::sys;

const NULL: &str = "/dev/null";

/// A place in the container, and what lies there.
struct Bound {
    place: String,
    source: PathBuf,
}

/// Bind mounts, folders of cgroups and devices; `cgroup` is where the container's are, or will be.
fn bound(bundle: &Bundle, cgroup: Option<&Cgroup>) -> Result<Vec<Bound>, Failed> {
    let root = root_folder(&bundle.rootfs)?;
    let mut bound = Vec::new();
    for mount in &bundle.spec.mounts {
        let place = place(root.as_fd(), &bundle.rootfs, &mount.destination);
        if is_bind(mount) {
            bound.push(Bound { place, source: bundle.dir.join(&mount.source) });
        } else if mount.kind == "cgroup" && bundle.namespace("cgroup").is_none() {
            let folders = bind_folders(&place, cgroup.into_iter().flat_map(Cgroup::directories));
            bound.extend(folders.map(|(place, source)| Bound { place, source: source.to_owned() }));
        }
    }
    for device in &bundle.linux().devices {
        let place = place(root.as_fd(), &bundle.rootfs, &device.path);
        bound.push(Bound { place, source: device.path.clone().into() });
    }
    Ok(bound)
}

/// Where a destination is once links in the root are followed; as it was written if it is not there.
fn place(root: BorrowedFd<'_>, rootfs: &Path, destination: &str) -> String {
    let reached = Target::new(destination).and_then(|target| target.reach(root, Missing::Refused));
    let found = reached.ok().and_then(|(handle, _)| {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
        Some(format!("/{}", path.strip_prefix(rootfs).ok()?.to_str()?))
    });
    found.unwrap_or_else(|| cleaned(destination))
}

fn root_folder(rootfs: &Path) -> Result<OwnedFd, Failed> {
    let opening = || format!("opening the root file system {}", rootfs.display());
    let path = CString::new(rootfs.as_os_str().as_bytes()).map_err(|_| rustix::io::Errno::INVAL).doing(opening)?;
    open_host_folder(&path).doing(opening)
}

/// For dumping: each place is its own name. Masked files all lie under the null device.
///
/// # Errors
/// The container's root is gone.
pub fn dumped_mounts(bundle: &Bundle, cgroup: Option<&Cgroup>, pid: i32) -> Result<Vec<ExternalMount>, Failed> {
    let name = |place: String| ExternalMount { value: place.clone(), key: place };
    let mut mounts: Vec<ExternalMount> = bound(bundle, cgroup)?.into_iter().map(|bound| name(bound.place)).collect();
    let opening = || format!("opening the root of process {pid}");
    let root = CString::new(format!("/proc/{pid}/root")).expect("a number has no zero byte");
    let root = open_host_folder(&root).doing(opening)?;
    for path in &bundle.linux().masked_paths {
        if is_file(root.as_fd(), path) {
            mounts.push(ExternalMount { key: cleaned(path), value: NULL.into() });
        }
    }
    Ok(mounts)
}

fn is_file(root: BorrowedFd<'_>, path: &str) -> bool {
    let there = Target::new(path).and_then(|target| open(root, target.path(), OFlags::PATH)).and_then(fstat);
    there.is_ok_and(|there| FileType::from_raw_mode(there.st_mode) != FileType::Directory)
}

/// For restoring: names as above, and what lies there now.
///
/// # Errors
/// The root is not there.
pub fn restored_mounts(bundle: &Bundle, cgroup: Option<&Cgroup>) -> Result<Vec<ExternalMount>, Failed> {
    let bound = bound(bundle, cgroup)?.into_iter();
    let mut mounts: Vec<ExternalMount> = bound
        .map(|bound| ExternalMount { key: bound.place, value: bound.source.to_string_lossy().into_owned() })
        .collect();
    if !bundle.linux().masked_paths.is_empty() {
        mounts.push(ExternalMount { key: NULL.into(), value: NULL.into() });
    }
    Ok(mounts)
}

/// The places that the container's mounts need, which `create` would have made. What lies on a tmpfs is in the images.
///
/// # Errors
/// A source is not there.
pub fn points(bundle: &Bundle) -> Result<Vec<Point>, Failed> {
    let mounts = &bundle.spec.mounts;
    let on_tmpfs = |path: &str| {
        mounts.iter().any(|mount| {
            mount.kind == "tmpfs"
                && path.strip_prefix(&cleaned(&mount.destination)).is_some_and(|below| below.starts_with('/'))
        })
    };
    let needed = mounts.iter().filter(|mount| mount.kind != "cgroup" && !on_tmpfs(&cleaned(&mount.destination)));
    needed.map(|mount| point(bundle, mount)).collect()
}

fn point(bundle: &Bundle, mount: &Mount) -> Result<Point, Failed> {
    let doing = || format!("making the mount point {}", mount.destination);
    let target = Target::new(&mount.destination).doing(doing)?;
    if !is_bind(mount) {
        return Ok(Point { target, missing: Missing::Folder, tree: None });
    }
    let source = bundle.dir.join(&mount.source);
    let depth = MountOptions::read(&mount.options).bind.unwrap_or(Depth::WithAllBelow);
    let tree =
        clone_bind(&source, depth).doing(|| format!("error mounting {} at {}", source.display(), mount.destination))?;
    let there = fstat(&tree).doing(|| format!("looking at {}", source.display()))?;
    let folder = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
    Ok(Point { target, missing: if folder { Missing::Folder } else { Missing::File }, tree: Some(tree) })
}

/// Kinds of namespaces that CRIU takes for granted if they are named; runc's name for each in the images.
const EXTERNAL: &[(&str, &str, &str)] = &[("network", "net", "extRootNetNS"), ("pid", "pid", "extRootPidNS")];

/// For dumping: the namespaces of `pid` that it has joined.
///
/// # Errors
/// The process is gone.
pub fn dumped_namespaces(bundle: &Bundle, pid: i32) -> Result<Vec<String>, Failed> {
    let joined = EXTERNAL.iter().filter(|(kind, ..)| path_of(bundle, kind).is_some());
    joined
        .map(|(_, kind, name)| {
            let path = format!("/proc/{pid}/ns/{kind}");
            let there = std::fs::metadata(&path).doing(|| format!("looking at {path}"))?;
            Ok(format!("{kind}[{}]:{name}", there.ino()))
        })
        .collect()
}

/// For restoring: opens the namespaces that are to be joined, and names them to CRIU.
///
/// # Errors
/// One is not there, or is of a kind that CRIU cannot join.
pub fn joined_namespaces(bundle: &Bundle, options: &mut Options) -> Result<Vec<File>, Error> {
    let mut opened = Vec::new();
    for namespace in &bundle.linux().namespaces {
        let Some(path) = path_of(bundle, &namespace.kind) else { continue };
        if let Some((_, _, name)) = EXTERNAL.iter().find(|(kind, ..)| *kind == namespace.kind) {
            let file = File::open(path).doing(|| format!("opening the {} namespace {path}", namespace.kind))?;
            sys::keep_over_exec(file.as_raw_fd()).doing(|| format!("handing criu {path}"))?;
            options.inherit_fd.push(InheritFd { key: (*name).into(), fd: file.as_raw_fd() });
            opened.push(file);
            continue;
        }
        let kind = match namespace.kind.as_str() {
            kind @ ("uts" | "ipc" | "time" | "user") => kind.to_owned(),
            kind => {
                let why = format!("criu cannot restore into a {kind} namespace that is there already");
                return Err(Error::unfit("linux.namespaces", why));
            }
        };
        options.join_ns.push(JoinNamespace { kind, file: path.to_owned() });
    }
    Ok(opened)
}

fn path_of<'a>(bundle: &'a Bundle, kind: &str) -> Option<&'a str> {
    bundle.namespace(kind).map(|namespace| namespace.path.as_str()).filter(|path| !path.is_empty())
}

/// Where a process is in each hierarchy, controller by controller.
///
/// Source: cgroups(7), "/proc/pid/cgroup".
pub fn cgroup_roots(pid: i32) -> Result<Vec<CgroupRoot>, Failed> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let roots = lines.flat_map(|(controllers, place)| {
        controllers.split(',').map(|name| CgroupRoot { controller: Some(name.into()), path: place.into() })
    });
    Ok(roots.collect())
}
