//! Runtime options: which runtime is called, and how.

use prost_types::Any;
use tare_proto::any;
use tare_proto::containerd::runc::v1::Options as RuncOptions;
use tare_proto::runtimeoptions::v1::Options as GenericOptions;

use crate::Error;

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// Reads the options of a start or a create; none and empty ones are normal.
///
/// # Errors
/// Bytes that are not such options, or a table with a key that is not supported.
pub fn read(options: Option<&Any>) -> Result<RuncOptions, Error> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(RuncOptions::default());
    };
    let bad = |error: prost::DecodeError| Error::new(format!("reading runtime options: {error}"));
    if let Some(options) = any::unpack::<RuncOptions>(options, RUNC).map_err(bad)? {
        return Ok(options);
    }
    if let Some(generic) = any::unpack::<GenericOptions>(options, GENERIC).map_err(bad)? {
        let text = if generic.config_body.is_empty() && !generic.config_path.is_empty() {
            std::fs::read(&generic.config_path)
                .map_err(|error| Error::new(format!("reading {}: {error}", generic.config_path)))?
        } else {
            generic.config_body
        };
        return table(&String::from_utf8_lossy(&text));
    }
    Err(Error::new(format!("runtime options of type {:?} are not supported", any::name(options))))
}

/// The table that CRI hands to runtimes it does not know by name: `Key = value` lines of TOML. Only scalar values occur in
/// it, so each line is read by itself.
fn table(text: &str) -> Result<RuncOptions, Error> {
    let mut options = RuncOptions::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
        let (key, value) =
            line.split_once('=').ok_or_else(|| Error::new(format!("runtime options: {line:?} is not KEY = VALUE")))?;
        let (key, value) = (key.trim(), value.trim().trim_matches(['"', '\'']));
        let number =
            || value.parse().map_err(|_| Error::new(format!("runtime options: {key}: {value:?} is not a number")));
        match key {
            "BinaryName" => value.clone_into(&mut options.binary_name),
            "Root" => value.clone_into(&mut options.root),
            "SystemdCgroup" => options.systemd_cgroup = value == "true",
            "NoPivotRoot" => options.no_pivot_root = value == "true",
            "NoNewKeyring" => options.no_new_keyring = value == "true",
            "ShimCgroup" => value.clone_into(&mut options.shim_cgroup),
            "IoUid" => options.io_uid = number()?,
            "IoGid" => options.io_gid = number()?,
            "CriuPath" | "CriuImagePath" | "CriuWorkPath" | "TypeUrl" | "ConfigPath" => {} // for checkpoints, or for the daemon
            _ => return Err(Error::new(format!("runtime options: {key} is not known"))),
        }
    }
    Ok(options)
}
