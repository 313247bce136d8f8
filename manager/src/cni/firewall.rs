//! Whether this machine can be told to translate addresses: the plugins run `iptables` or `nft` for that, and fail where
//! there is neither. A network of somebody else's making is left as it is; one of ours does without, and says so.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::{Value, json};

const PROGRAMS: &[&str] = &["iptables", "nft"];

/// Looked up where plugins find them, in this process's own PATH.
pub fn is_there() -> bool {
    std::env::var_os("PATH").is_some_and(|path| is_in(&path))
}

fn is_in(path: &OsStr) -> bool {
    let executable = |file: &Path| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    std::env::split_paths(path).any(|folder| PROGRAMS.iter().any(|program| executable(&folder.join(program))))
}

/// A list without what takes such a program: whoever is on it reaches its neighbours and this machine.
pub fn without(mut list: Value) -> Value {
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.retain(|plugin| plugin["type"] != "portmap");
        for plugin in plugins.iter_mut().filter(|plugin| plugin.get("ipMasq").is_some()) {
            plugin["ipMasq"] = json!(false);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_counts_if_it_is_found_and_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), dir.path()]).unwrap();
        let nft = dir.path().join("nft");
        assert!(!is_in(&path));
        fs::write(&nft, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!is_in(&path));
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is_in(&path));
    }

    #[test]
    fn what_is_left_of_a_list_takes_no_rules() {
        let bridge = |masquerade: bool| json!({"type": "bridge", "bridge": "b0", "ipMasq": masquerade});
        let list = json!({"name": "n", "plugins": [bridge(true), {"type": "portmap"}, {"type": "tuning"}]});
        assert_eq!(without(list), json!({"name": "n", "plugins": [bridge(false), {"type": "tuning"}]}));
    }
}
