//! What was added, on disk: `FOLDER/CONTAINER-ID/INTERFACE.json`, written before the first plugin runs and again with the
//! result. Whoever removes the pod, be it after a crash, knows by which configuration, and what the plugins said then.
//!
//! The fields are those of libcni's own cache.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::attachment::name;
use crate::error::{Doing as _, Error, Result};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub container_id: String,
    pub if_name: String,
    /// The list that it was added by.
    pub config: Value,
    #[serde(default)]
    pub cni_args: Vec<(String, String)>,
    #[serde(default)]
    pub capability_args: Map<String, Value>,
    /// Missing if adding never came to its end.
    pub result: Option<Map<String, Value>>,
}

#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    pub fn at(folder: &Path) -> Cache {
        Cache(folder.to_owned())
    }

    /// Writes an entry, whole or not at all.
    ///
    /// # Errors
    /// The disk's.
    pub fn put(&self, entry: &Entry) -> Result<()> {
        let folder = self.0.join(&entry.container_id);
        let file = folder.join(format!("{}.json", entry.if_name));
        let doing = || format!("writing {}", file.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).doing(doing)?;
        let bytes = serde_json::to_vec(entry).map_err(|error| Error::Internal(format!("{}: {error}", doing())))?;
        let aside = file.with_extension("new");
        let mut made = fs::File::create(&aside).doing(doing)?;
        made.write_all(&bytes).doing(doing)?;
        made.sync_data().doing(doing)?; // addresses are reserved on disk, too, and outlive a power cut
        fs::rename(&aside, &file).doing(doing)
    }

    /// A pod's entries, the last one added first.
    ///
    /// # Errors
    /// The disk's; or a file that is no entry.
    pub fn of(&self, id: &str) -> Result<Vec<Entry>> {
        name("container id", id)?;
        let folder = self.0.join(id);
        let mut files = names(&folder)?;
        files.retain(|file| file.ends_with(".json"));
        files.sort_by_key(|file| std::cmp::Reverse((file.len(), file.clone()))); // eth10 is behind eth9
        files
            .iter()
            .map(|file| {
                let path = folder.join(file);
                let doing = || format!("reading {}", path.display());
                let bytes = fs::read(&path).doing(doing)?;
                serde_json::from_slice(&bytes).map_err(|error| Error::Internal(format!("{}: {error}", doing())))
            })
            .collect()
    }

    /// Forgets one interface of a pod, and the pod with its last one.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(&self, id: &str, interface: &str) -> Result<()> {
        name("container id", id)?;
        let folder = self.0.join(id);
        let file = folder.join(format!("{interface}.json"));
        gone(fs::remove_file(&file)).doing(|| format!("removing {}", file.display()))?;
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => gone(other).doing(|| format!("removing {}", folder.display())),
        }
    }

    /// Removes what a writer that was killed has left of a pod that has no entry any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn sweep(&self, id: &str) -> Result<()> {
        name("container id", id)?;
        let folder = self.0.join(id);
        gone(fs::remove_dir_all(&folder)).doing(|| format!("removing {}", folder.display()))
    }

    /// Every pod that has entries.
    ///
    /// # Errors
    /// The disk's.
    pub fn ids(&self) -> Result<Vec<String>> {
        names(&self.0)
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let doing = || format!("reading {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing(doing)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.doing(doing)?.file_name().into_string());
    }
    Ok(names)
}
