//! Older forms of containerd's configuration, and the parts of containerd's that have another place here.
//!
//! | version 2 | version 3 | here |
//! |---|---|---|
//! | `plugins."io.containerd.internal.v1.restart"` | `plugins."io.containerd.monitor.container.v1.restart"` | as version 3 |
//! | `plugins."io.containerd.grpc.v1.cri"` | `plugins."io.containerd.cri.v1.runtime"` | `cri` |
//! | `… .containerd.default_runtime_name` | the same | `cri.default_runtime` |
//! | `… .containerd.runtimes.NAME.runtime_type` | the same | `cri.runtimes.NAME.type` |
//! | `… .runtimes.NAME.options.BinaryName` | the same | `cri.runtimes.NAME.binary` |
//! | `… .runtimes.DEFAULT.options.SystemdCgroup` | the same | `cri.systemd_cgroup` |
//! | `… .cni.conf_dir`, `… .cni.bin_dir` | `… .cni.conf_dir`, `… .cni.bin_dirs` | `cri.cni.conf_dir`, `cri.cni.bin_dirs` |
//!
//! What is not in the table stays where it is, and is reported as a key that does nothing.

use toml::{Table, Value};

/// The version that this program writes.
pub const PRESENT: i64 = 3;

/// # Errors
/// What version it is of, if that is not known.
pub fn to_present(table: &mut Table) -> Result<(), String> {
    match table.get("version") {
        None => {}
        Some(Value::Integer(2 | PRESENT)) => {}
        Some(version) => return Err(format!("version = {version}: 2 and {PRESENT} are known")),
    }
    table.insert("version".into(), Value::Integer(PRESENT));
    let Some(Value::Table(plugins)) = table.get_mut("plugins") else { return Ok(()) };
    if let Some(restart) = plugins.remove("io.containerd.internal.v1.restart") {
        plugins.insert("io.containerd.monitor.container.v1.restart".into(), restart);
    }
    let mut cri = Table::new();
    for name in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
        if let Some(Value::Table(plugin)) = plugins.get_mut(name) {
            move_cri(plugin, &mut cri);
            if plugin.is_empty() {
                plugins.remove(name);
            }
        }
    }
    if !cri.is_empty() {
        let Value::Table(own) = table.entry("cri").or_insert_with(|| Value::Table(Table::new())) else { return Ok(()) };
        for (key, value) in cri {
            own.entry(key).or_insert(value);
        }
    }
    Ok(())
}

fn move_cri(plugin: &mut Table, cri: &mut Table) {
    let default = take(plugin, &["containerd", "default_runtime_name"]);
    let name = default.as_ref().and_then(Value::as_str).unwrap_or("runc").to_owned();
    if let Some(default) = default {
        cri.insert("default_runtime".into(), default);
    }
    let mut runtimes = Table::new();
    let names: Vec<String> = match plugin.get("containerd").and_then(|table| table.get("runtimes")) {
        Some(Value::Table(runtimes)) => runtimes.keys().cloned().collect(),
        _ => Vec::new(),
    };
    for runtime in names {
        let mut own = Table::new();
        for (from, to) in [(&["runtime_type"][..], "type"), (&["options", "BinaryName"], "binary")] {
            let path = [&["containerd", "runtimes", &runtime], from].concat();
            if let Some(value) = take(plugin, &path) {
                own.insert(to.into(), value);
            }
        }
        if runtime == name
            && let Some(systemd) = take(plugin, &["containerd", "runtimes", &runtime, "options", "SystemdCgroup"])
        {
            cri.insert("systemd_cgroup".into(), systemd);
        }
        if own.contains_key("type") {
            runtimes.insert(runtime, Value::Table(own));
        }
    }
    if !runtimes.is_empty() {
        cri.insert("runtimes".into(), Value::Table(runtimes));
    }
    let mut cni = Table::new();
    if let Some(folder) = take(plugin, &["cni", "conf_dir"]) {
        cni.insert("conf_dir".into(), folder);
    }
    if let Some(folder) = take(plugin, &["cni", "bin_dir"]) {
        cni.insert("bin_dirs".into(), Value::Array(vec![folder]));
    }
    if let Some(folders) = take(plugin, &["cni", "bin_dirs"]) {
        cni.insert("bin_dirs".into(), folders);
    }
    if !cni.is_empty() {
        cri.insert("cni".into(), Value::Table(cni));
    }
}

/// Takes a value out, with the tables above it that are empty then.
fn take(table: &mut Table, path: &[&str]) -> Option<Value> {
    match path {
        [] => None,
        [key] => table.remove(*key),
        [key, rest @ ..] => {
            let Some(Value::Table(below)) = table.get_mut(*key) else { return None };
            let value = take(below, rest);
            if below.is_empty() {
                table.remove(*key);
            }
            value
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_another_place_here_is_found_in_containerds_second_and_third_version() {
        for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
            let version = if plugin.contains("grpc") { 2 } else { 3 };
            let mut table: Table = format!(
                "version = {version}\n\
                 [plugins.'{plugin}'.containerd]\ndefault_runtime_name = 'crun'\n\
                 [plugins.'{plugin}'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n\
                 [plugins.'{plugin}'.containerd.runtimes.crun.options]\nBinaryName = '/usr/bin/crun'\nSystemdCgroup = true\n\
                 [plugins.'{plugin}'.cni]\nbin_dir = '/cni'\n"
            )
            .parse()
            .unwrap();
            to_present(&mut table).unwrap();
            let expected = "version = 3\n[plugins]\n[cri]\ndefault_runtime = 'crun'\nsystemd_cgroup = true\n\
                            [cri.cni]\nbin_dirs = ['/cni']\n\
                            [cri.runtimes.crun]\ntype = 'io.containerd.runc.v2'\nbinary = '/usr/bin/crun'\n";
            assert_eq!(table, expected.parse().unwrap(), "{plugin}");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_refused() {
        let mut table: Table = "version = 4".parse().unwrap();
        assert_eq!(to_present(&mut table).unwrap_err(), "version = 4: 2 and 3 are known");
    }
}
