//! What a description makes of a container's specification.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::file::{DeviceNode, Edits, Hook, Mount};
use crate::error::{Doing as _, Error, Result};

/// # Errors
/// A description is malformed, or a device is not there.
pub fn apply(spec: &mut Value, edits: &Edits) -> Result<()> {
    for variable in &edits.env {
        set_variable(spec, variable)?;
    }
    for node in &edits.device_nodes {
        add_device(spec, node)?;
    }
    for device in &edits.net_devices {
        spec["linux"]["netDevices"][&device.host_interface_name] = json!({"name": device.name});
    }
    for mount in &edits.mounts {
        add_mount(spec, mount)?;
    }
    if !edits.mounts.is_empty() {
        // A mount lies on the one above it: those nearer to the root come first.
        let depth = |mount: &Value| Path::new(mount["destination"].as_str().unwrap_or_default()).components().count();
        list(&mut spec["mounts"]).sort_by_key(depth);
    }
    for hook in &edits.hooks {
        add_hook(spec, hook)?;
    }
    if let Some(rdt) = &edits.intel_rdt {
        spec["linux"]["intelRdt"] = rdt.clone();
    }
    let groups = list(&mut spec["process"]["user"]["additionalGids"]);
    for group in edits.additional_gids.iter().filter(|group| **group != 0) {
        if !groups.contains(&json!(group)) {
            groups.push(json!(group));
        }
    }
    Ok(())
}

/// The list at a place where there may be none yet.
fn list(place: &mut Value) -> &mut Vec<Value> {
    if !place.is_array() {
        *place = json!([]);
    }
    place.as_array_mut().expect("it is one, or has just become one")
}

fn set_variable(spec: &mut Value, variable: &str) -> Result<()> {
    let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(Error::InvalidArgument(format!("env: {variable:?} is no variable")));
    };
    let all = list(&mut spec["process"]["env"]);
    let same =
        |known: &&mut Value| known.as_str().and_then(|text| text.split_once('=')).is_some_and(|(k, _)| k == name);
    match all.iter_mut().find(same) {
        Some(known) => *known = json!(variable),
        None => all.push(json!(variable)),
    }
    Ok(())
}

/// The node, and the right to use it. What the description does not say is looked up on the host.
fn add_device(spec: &mut Value, node: &DeviceNode) -> Result<()> {
    let wrong = |why: String| Error::InvalidArgument(format!("deviceNodes: {}: {why}", node.path.display()));
    if !node.path.is_absolute() {
        return Err(wrong("its path is not absolute".into()));
    }
    if !matches!(node.r#type.as_str(), "" | "b" | "c" | "u" | "p") || node.major < 0 || node.minor < 0 {
        return Err(wrong(format!("{:?} {}:{} is no device", node.r#type, node.major, node.minor)));
    }
    let access = match node.permissions.as_str() {
        "" => "rwm",
        "none" => "",
        some if some.bytes().all(|b| b"rwm".contains(&b)) => some,
        other => return Err(wrong(format!("permissions {other:?} are not made of r, w and m"))),
    };
    let (mut kind, mut major, mut minor) = (node.r#type.clone(), node.major, node.minor);
    if kind.is_empty() || major == 0 && kind != "p" {
        let host = if node.host_path.as_os_str().is_empty() { &node.path } else { &node.host_path };
        let metadata = fs::metadata(host).doing(|| format!("looking at {}", host.display()))?;
        let found = match metadata.file_type() {
            file if file.is_block_device() => "b",
            file if file.is_char_device() => "c",
            file if file.is_fifo() => "p",
            _ => return Err(wrong(format!("{} is no device", host.display()))),
        };
        if !kind.is_empty() && kind != found && !(kind == "u" && found == "c") {
            return Err(wrong(format!("{} is of type {found:?}, not {kind:?}", host.display())));
        }
        if kind.is_empty() {
            found.clone_into(&mut kind);
        }
        let number = metadata.rdev();
        (major, minor) = (rustix::fs::major(number).into(), rustix::fs::minor(number).into());
    }
    let user = &spec["process"]["user"];
    let own = |id: &str| user[id].as_u64().filter(|id| *id > 0).and_then(|id| u32::try_from(id).ok());
    let (uid, gid) = (node.uid.or_else(|| own("uid")), node.gid.or_else(|| own("gid")));
    let mut device = Map::from_iter([("path".to_owned(), json!(node.path)), ("type".to_owned(), json!(kind))]);
    if kind != "p" {
        device.extend([("major".to_owned(), json!(major)), ("minor".to_owned(), json!(minor))]);
    }
    for (key, number) in [("fileMode", node.file_mode), ("uid", uid), ("gid", gid)] {
        device.extend(number.map(|number| (key.to_owned(), json!(number))));
    }
    let all = list(&mut spec["linux"]["devices"]);
    all.retain(|known| known["path"] != device["path"]);
    all.push(Value::Object(device));
    if kind != "p" && !access.is_empty() {
        let kind = if kind == "b" { "b" } else { "c" };
        list(&mut spec["linux"]["resources"]["devices"])
            .push(json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access}));
    }
    Ok(())
}

fn add_mount(spec: &mut Value, mount: &Mount) -> Result<()> {
    if !mount.container_path.is_absolute() || mount.host_path.as_os_str().is_empty() {
        let at = mount.container_path.display();
        return Err(Error::InvalidArgument(format!(
            "mounts: {at}: hostPath and an absolute containerPath must be given"
        )));
    }
    let mut written = json!({
        "destination": mount.container_path, "type": mount.r#type, "source": mount.host_path, "options": mount.options,
    });
    let binds = mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    if binds && spec["linux"]["uidMappings"].is_array() {
        // Its owners are shown as those of the container's user namespace.
        for key in ["uidMappings", "gidMappings"] {
            written[key] = spec["linux"][key].clone();
        }
    }
    let all = list(&mut spec["mounts"]);
    all.retain(|known| known["destination"] != written["destination"]);
    all.push(written);
    Ok(())
}

fn add_hook(spec: &mut Value, hook: &Hook) -> Result<()> {
    const STAGES: [&str; 6] =
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    if !STAGES.contains(&hook.hook_name.as_str()) {
        return Err(Error::InvalidArgument(format!("hooks: {:?} is no stage of a container's life", hook.hook_name)));
    }
    let mut written = json!({"path": hook.path});
    if !hook.args.is_empty() {
        written["args"] = json!(hook.args);
    }
    if !hook.env.is_empty() {
        written["env"] = json!(hook.env);
    }
    if let Some(timeout) = hook.timeout {
        written["timeout"] = json!(timeout);
    }
    list(&mut spec["hooks"][&hook.hook_name]).push(written);
    Ok(())
}
