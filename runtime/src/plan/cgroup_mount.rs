//! A mount of type `cgroup`: what a container sees of its own cgroups.

use std::os::fd::AsFd as _;
use std::path::Path;

use super::filesystem::target;
use super::mounts::clone_bind;
use super::{Mount, What, c_string};
use crate::bundle::{Error, refused};
use crate::cgroup::Hierarchy;
use crate::error::{Doing as _, Failed};
use crate::mount::options::{Attributes, Depth, Options, RDONLY};
use crate::mount::root::Missing;
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

/// Where the folder of each hierarchy is bound, for a container without a cgroup namespace on version 1.
pub fn bind_folders<'a>(
    destination: &str,
    hierarchies: impl Iterator<Item = &'a Hierarchy>,
) -> impl Iterator<Item = (String, &'a Path)> {
    hierarchies.map(move |hierarchy| {
        let controllers = hierarchy.controllers.join(",");
        let name = controllers.strip_prefix("name=").unwrap_or(&controllers);
        (format!("{destination}/{name}"), hierarchy.path.as_path())
    })
}

/// Adds the mounts that it comes to, whatever version the host has.
pub fn add(
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
        tree::apply(tree.as_fd(), options.here, Depth::Alone)
            .doing(|| format!("setting options on {}", mount.destination))?;
        Ok(What::Tree(tree))
    };
    let at = |path: &str, what: What, propagation: &[(u64, Depth)]| -> Result<Mount, Failed> {
        Ok(Mount {
            target: target(field, path)?,
            missing: Missing::Folder,
            ordinary: false,
            in_procfs: false,
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
        mounts.push(at(&mount.destination, What::Remount(Vec::new(), Attributes { set: RDONLY, clear: 0 }), &[])?);
    }
    Ok(())
}
