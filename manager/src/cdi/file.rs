//! What a vendor's file says. A field that nobody knows makes the file unusable: leaving out an edit could leave a device
//! open or unusable.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{split, yaml};
use crate::error::{Doing as _, Error, Result};

pub struct File {
    pub path: PathBuf,
    /// Which of the folders it is in.
    pub folder: usize,
    pub kind: String,
    pub edits: Edits,
    pub devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    #[serde(rename = "cdiVersion")]
    version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    #[serde(rename = "containerEdits")]
    pub edits: Edits,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<NetDevice>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    /// As the runtime specification has it.
    pub intel_rdt: Option<Value>,
    pub additional_gids: Vec<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DeviceNode {
    pub path: PathBuf,
    pub host_path: PathBuf,
    pub r#type: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default)]
    pub r#type: String,
}

/// All files of some folders in the order of the folders, and why others cannot be used.
pub fn read(folders: &[PathBuf]) -> (Vec<File>, Vec<Error>) {
    let (mut files, mut bad) = (Vec::new(), Vec::new());
    for (folder, place) in folders.iter().enumerate() {
        let entries = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut paths: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml")).collect();
        paths.sort();
        for path in paths {
            match one(&path, folder) {
                Ok(file) => files.push(file),
                Err(error) => bad.push(error),
            }
        }
    }
    (files, bad)
}

fn one(path: &Path, folder: usize) -> Result<File> {
    let doing = || format!("reading {}", path.display());
    let wrong = |why: String| Error::InvalidArgument(format!("reading {}: {why}", path.display()));
    let text = fs::read_to_string(path).doing(doing)?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let value = if is_json { serde_json::from_str(&text).map_err(|e| e.to_string()) } else { yaml::read(&text) }
        .map_err(wrong)?;
    let text = Text::deserialize(value).map_err(|error| wrong(error.to_string()))?;
    let version = text.version.trim_start_matches('v');
    if !matches!(version.split('.').next(), Some("0" | "1")) {
        return Err(wrong(format!("cdiVersion {:?} is not supported", text.version)));
    }
    for device in &text.devices {
        split(&format!("{}={}", text.kind, device.name)).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(File { path: path.to_owned(), folder, kind: text.kind, edits: text.container_edits, devices: text.devices })
}
