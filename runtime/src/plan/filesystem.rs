//! The container's view of files: root, mounts, devices, masks.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, fstat, makedev};

use super::{Filesystem, Mount, Node, What, c_string};
use crate::bundle::{Bundle, Error, cleaned, refused};
use crate::error::{Doing as _, Failed};
use crate::mount::options::{Attributes, Depth, Options, PRIVATE, RDONLY, SLAVE};
use crate::mount::root::{Missing, Target};
use crate::mount::tree::{self, FileSystem};
use crate::spec;

/// What the container's own cgroups look like, for a mount of type `cgroup`.
pub struct CgroupView<'a> {
    /// Whether the host shows version 2 alone.
    pub unified: bool,
    /// Whether the container has a cgroup namespace: then it makes its mounts itself, else its folders are bound.
    pub namespace: bool,
    /// Controllers (`cpu,cpuacct` or `name=systemd`) and the container's folder of each v1 hierarchy.
    pub hierarchies: Vec<(String, &'a Path)>,
    /// The container's folder on version 2.
    pub folder: Option<&'a Path>,
}

/// Plans the root and all that lies in it. Binds are cloned here, so that their sources are looked up once, by us.
///
/// # Errors
/// A source does not exist or may not be cloned.
pub fn filesystem(bundle: &Bundle, cgroups: &CgroupView<'_>, no_pivot: bool) -> Result<Filesystem, Error> {
    let spec = &bundle.spec;
    let linux = bundle.linux();
    let place = CString::new(bundle.rootfs.as_os_str().as_bytes()).expect("a canonical path has no zero byte");
    let root = tree::clone(CWD, &place, Depth::WithAllBelow)
        .doing(|| format!("cloning the root file system {}", bundle.rootfs.display()))?;
    // Nothing of the container's may come out to the host by way of the mount that its root was cloned from.
    tree::propagate(root.as_fd(), SLAVE, Depth::WithAllBelow)
        .doing(|| "making the root a slave of its source".into())?;
    let root_propagation = super::propagation(&linux.rootfs_propagation).flatten();
    let mut mounts = Vec::new();
    for (index, mount) in spec.mounts.iter().enumerate() {
        add_mount(&mut mounts, bundle, index, mount, cgroups)?;
    }
    let devices = !spec.mounts.iter().any(|mount| cleaned(&mount.destination) == "/dev" && is_bind(mount));
    let bound = bundle.namespace("user").is_some();
    let mut read_only = targets("linux.readonlyPaths", &linux.readonly_paths)?;
    if spec.mounts.iter().any(|mount| is_filled(mount) && mount.options.iter().any(|word| word == "ro")) {
        read_only.push(target("mounts", "/dev")?);
    }
    Ok(Filesystem {
        root,
        place,
        readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        host_propagation: match root_propagation {
            Some((PRIVATE, _)) => (PRIVATE, Depth::WithAllBelow),
            _ => (SLAVE, Depth::WithAllBelow),
        },
        root_propagation: root_propagation.filter(|(kind, _)| *kind != SLAVE),
        mounts,
        nodes: if devices { nodes(linux, bound)? } else { Vec::new() },
        links: if devices { links()? } else { Vec::new() },
        masked: targets("linux.maskedPaths", &linux.masked_paths)?,
        read_only,
        no_pivot,
    })
}

fn is_bind(mount: &spec::Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|word| word == "bind" || word == "rbind")
}

/// Whether it is a new file system at /dev, which gets its devices from us and can be read-only only after that.
fn is_filled(mount: &spec::Mount) -> bool {
    cleaned(&mount.destination) == "/dev" && !is_bind(mount)
}

fn target(field: &str, path: &str) -> Result<Target, Failed> {
    Target::new(path).doing(|| format!("{field}: {path:?}"))
}

/// Paths to protect, each once.
fn targets(field: &str, paths: &[String]) -> Result<Vec<Target>, Failed> {
    let mut seen = std::collections::BTreeSet::new();
    paths.iter().filter(|path| seen.insert(cleaned(path))).map(|path| target(field, path)).collect()
}

fn add_mount(
    mounts: &mut Vec<Mount>,
    bundle: &Bundle,
    index: usize,
    mount: &spec::Mount,
    cgroups: &CgroupView<'_>,
) -> Result<(), Error> {
    let field = format!("mounts[{index}]");
    let options = Options::read(&mount.options)
        .or_else(|word| refused(format!("{field}.options"), format!("{word} is not supported yet")))?;
    if is_bind(mount) {
        mounts.push(bind(&field, bundle, mount, &options)?);
        return Ok(());
    }
    if mount.kind == "cgroup" || (mount.kind == "cgroup2" && !cgroups.namespace) {
        return add_cgroup(mounts, &field, mount, &options, cgroups);
    }
    let source = if mount.source.is_empty() { &mount.kind } else { &mount.source };
    let attributes = options.here.set | options.below.set;
    mounts.push(Mount {
        target: target(&field, &mount.destination)?,
        missing: Missing::Folder,
        ordinary: matches!(mount.kind.as_str(), "proc" | "sysfs"),
        what: What::FileSystem(FileSystem {
            kind: c_string(&format!("{field}.type"), &mount.kind)?,
            source: c_string(&format!("{field}.source"), source)?,
            data: data(&field, &options)?,
            attributes: if is_filled(mount) { attributes & !RDONLY } else { attributes },
        }),
        propagation: options.propagation,
    });
    Ok(())
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

/// A bind mount, cloned from the host and adjusted, ready to be attached.
fn bind(field: &str, bundle: &Bundle, mount: &spec::Mount, options: &Options) -> Result<Mount, Error> {
    let source = bundle.dir.join(&mount.source);
    let tree = clone_bind(&source, options.bind.unwrap_or(Depth::WithAllBelow))
        .doing(|| format!("mounting {} at {}", source.display(), mount.destination))?;
    tree::adjust(tree.as_fd(), options)
        .doing(|| format!("setting {} on {}", mount.options.join(","), mount.destination))?;
    let kind = fstat(&tree).doing(|| format!("looking at {}", source.display()))?.st_mode;
    let folder = FileType::from_raw_mode(kind) == FileType::Directory;
    // What is mounted in the container stays there, unless the specification asks for more.
    let mut propagation = vec![(PRIVATE, Depth::WithAllBelow)];
    propagation.extend(options.propagation.iter().copied());
    Ok(Mount {
        target: target(field, &mount.destination)?,
        missing: if folder { Missing::Folder } else { Missing::File },
        ordinary: false,
        what: What::Tree(tree),
        propagation,
    })
}

fn clone_bind(source: &Path, depth: Depth) -> Result<OwnedFd, rustix::io::Errno> {
    let path = CString::new(source.as_os_str().as_bytes()).map_err(|_| rustix::io::Errno::INVAL)?;
    tree::clone(CWD, &path, depth)
}

/// A mount of type `cgroup`: what the container sees of its own cgroups, whatever version the host has.
fn add_cgroup(
    mounts: &mut Vec<Mount>,
    field: &str,
    mount: &spec::Mount,
    options: &Options,
    cgroups: &CgroupView<'_>,
) -> Result<(), Error> {
    let make = |kind: &str, data: &[(&str, Option<&str>)], attributes: u64| -> Result<What, Failed> {
        let data = data
            .iter()
            .map(|(key, value)| Ok((c_string(field, key)?, value.map(|value| c_string(field, value)).transpose()?)))
            .collect::<Result<_, Failed>>()?;
        Ok(What::FileSystem(FileSystem {
            kind: c_string(field, kind)?,
            source: c_string(field, kind)?,
            data,
            attributes,
        }))
    };
    let folder_bind = |folder: &Path| -> Result<What, Failed> {
        let tree = clone_bind(folder, Depth::Alone)
            .doing(|| format!("mounting {} at {}", folder.display(), mount.destination))?;
        tree::adjust(tree.as_fd(), options).doing(|| format!("setting options on {}", mount.destination))?;
        Ok(What::Tree(tree))
    };
    let at = |path: &str, what: What, propagation: &[(u64, Depth)]| -> Result<Mount, Failed> {
        Ok(Mount {
            target: target(field, path)?,
            missing: Missing::Folder,
            ordinary: false,
            what,
            propagation: propagation.to_vec(),
        })
    };
    if cgroups.unified {
        let what = match cgroups.folder {
            Some(folder) if !cgroups.namespace => folder_bind(folder)?,
            None if !cgroups.namespace => {
                return refused(format!("{field}.type"), "without cgroups it needs a cgroup namespace");
            }
            _ => make("cgroup2", &[], options.here.set)?,
        };
        mounts.push(at(&mount.destination, what, &options.propagation)?);
        return Ok(());
    }
    mounts.push(at(
        &mount.destination,
        make("tmpfs", &[("mode", Some("755"))], options.here.set & !RDONLY)?,
        &options.propagation,
    )?);
    for (controllers, folder) in &cgroups.hierarchies {
        let name = controllers.strip_prefix("name=").unwrap_or(controllers.as_str());
        let what = match controllers.strip_prefix("name=") {
            _ if !cgroups.namespace => folder_bind(folder)?,
            Some(name) => make("cgroup", &[("none", None), ("name", Some(name))], options.here.set)?,
            None => {
                make("cgroup", &controllers.split(',').map(|name| (name, None)).collect::<Vec<_>>(), options.here.set)?
            }
        };
        mounts.push(at(&format!("{}/{name}", mount.destination), what, &[])?);
        if name.contains(',') {
            for part in name.split(',') {
                mounts.push(at(&format!("{}/{part}", mount.destination), What::Link(c_string(field, name)?), &[])?);
            }
        }
    }
    if options.here.set & RDONLY != 0 {
        mounts.push(at(&mount.destination, What::Attributes(Attributes { set: RDONLY, clear: 0 }), &[])?);
    }
    Ok(())
}

/// Path and numbers of each device that every container has. Source: runtime-spec config-linux.md, "Default Devices".
const DEFAULT_DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default devices and those of the specification, which replace defaults at the same path.
fn nodes(linux: &spec::Linux, bound: bool) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for (path, major, minor) in DEFAULT_DEVICES {
        if !linux.devices.iter().any(|device| cleaned(&device.path) == *path) {
            nodes.push(node(path, FileType::CharacterDevice, makedev(*major, *minor), 0o666, (0, 0), bound)?);
        }
    }
    for device in &linux.devices {
        let kind = match device.kind.as_str() {
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        let number = |name: &str, number: i64| {
            u32::try_from(number).or_else(|_| {
                refused(format!("linux.devices {}: {name}", device.path), format!("{number} is not a device number"))
            })
        };
        let numbers = if kind == FileType::Fifo {
            0
        } else {
            makedev(number("major", device.major)?, number("minor", device.minor)?)
        };
        let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        nodes.push(node(
            &device.path,
            kind,
            numbers,
            device.file_mode.unwrap_or(0o666) & 0o7777,
            owner,
            bound && kind != FileType::Fifo,
        )?);
    }
    Ok(nodes)
}

fn node(
    path: &str,
    file_type: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
    bound: bool,
) -> Result<Node, Error> {
    let bound = if bound { Some(host_device(path, file_type, device)?) } else { None };
    Ok(Node { target: target("linux.devices", path)?, file_type, mode, device, uid: owner.0, gid: owner.1, bound })
}

/// In a user namespace mknod is not allowed: the host's node is bound, if it is the same device.
fn host_device(path: &str, file_type: FileType, device: u64) -> Result<OwnedFd, Error> {
    let tree = clone_bind(Path::new(OsStr::new(path)), Depth::Alone).doing(|| format!("binding the device {path}"))?;
    let there = fstat(&tree).doing(|| format!("looking at {path}"))?;
    if FileType::from_raw_mode(there.st_mode) != file_type || there.st_rdev != device {
        return refused(
            format!("linux.devices {path}"),
            "the host has another device there, and a user namespace may not make one",
        );
    }
    Ok(tree)
}

/// Source: runtime-spec config-linux.md, "Dev symbolic links"; `ptmx` as the default file systems need it.
fn links() -> Result<Vec<(Target, CString)>, Failed> {
    let mut links = vec![
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ];
    if Path::new("/proc/kcore").exists() {
        links.push(("/dev/core", "/proc/kcore"));
    }
    links.iter().map(|(path, to)| Ok((target("/dev", path)?, c_string("/dev", to)?))).collect()
}
