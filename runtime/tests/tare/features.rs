//! What `features` and `spec` print: runc's structure, and no line that is not true.

use serde_json::{Value, json};

use crate::bundle::{Bundle, answer, peer};

fn printed_by(command: &mut std::process::Command) -> Value {
    let answer = answer(command);
    serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn ours() -> Value {
    printed_by(std::process::Command::new(env!("CARGO_BIN_EXE_tare")).arg("features"))
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Callers look for these: a word that runc has and we have not would turn something off.
#[test]
fn features_has_all_that_runcs_has() {
    let (ours, theirs) = (
        ours(),
        printed_by(std::process::Command::new(peer(&["newer/usr/sbin/runc", "newer/usr/bin/runc"])).arg("features")),
    );
    for list in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/knownFlags",
        "/linux/seccomp/supportedFlags",
    ] {
        let (have, want) = (words(ours.pointer(list).unwrap()), words(theirs.pointer(list).unwrap()));
        let missing: Vec<_> = want.iter().filter(|word| !have.contains(word)).collect();
        assert!(missing.is_empty(), "{list}: {missing:?}");
    }
    for key in theirs["linux"].as_object().unwrap().keys() {
        assert!(ours["linux"].get(key).is_some(), "linux.{key}");
    }
    assert_eq!(ours["linux"]["mountExtensions"]["idmap"]["enabled"], true);
}

/// Every option that is claimed is taken: by a mount of a kind that it is for.
#[test]
fn each_mount_option_that_is_claimed_is_taken() {
    let features = ours();
    let mut bundle = Bundle::new();
    for (index, option) in words(&features["mountOptions"]).into_iter().enumerate() {
        let at = format!("/m{index}");
        let mount = match option {
            // These are for file systems that have them, which a tmpfs has not.
            "iversion" | "mand" | "sync" | "dirsync" | "lazytime" => continue,
            "tmpcopyup" => json!({"type": "tmpfs", "source": "tmpfs", "destination": at, "options": [option]}),
            "remount" => {
                json!({"destination": format!("/m{}", index - 1), "options": ["remount", "ro"]})
            }
            "idmap" | "ridmap" => {
                let mapping = json!([{"containerID": 0, "hostID": 5, "size": 5}]);
                json!({"type": "bind", "source": "data", "destination": at, "options": ["bind", option],
                    "uidMappings": mapping, "gidMappings": mapping})
            }
            option => json!({"type": "bind", "source": "data", "destination": at, "options": ["bind", option]}),
        };
        bundle = bundle.mount(mount);
    }
    std::fs::create_dir(bundle.path("data")).unwrap();
    let ended = bundle.script("true").run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// Each flag that is said to be supported is one that this kernel and we can load.
#[test]
fn each_seccomp_flag_and_action_that_is_claimed_loads() {
    let features = ours();
    for flag in words(&features["linux"]["seccomp"]["supportedFlags"]) {
        if flag.ends_with("WAIT_KILLABLE_RECV") {
            continue; // it needs a listener: see the tests of what is handed over
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag],
            "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
        let ended = Bundle::new().set("/linux/seccomp", profile).script("true").run();
        assert_eq!(ended.code, Some(0), "{flag}: {ended:?}");
    }
    for action in words(&features["linux"]["seccomp"]["actions"]) {
        if action == "SCMP_ACT_NOTIFY" {
            continue; // as above
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": action}]});
        let ended = Bundle::new().set("/linux/seccomp", profile).script("true").run();
        assert_eq!(ended.code, Some(0), "{action}: {ended:?}");
    }
}

/// What `spec` writes is what runc writes, but for its name, and for masks that were found to be wanting since.
#[test]
fn spec_writes_what_runc_writes() {
    for more in [&[][..], &["--rootless"]] {
        let written = |program: &std::path::Path| {
            let dir = tempfile::tempdir().unwrap();
            let done = answer(std::process::Command::new(program).arg("spec").args(more).current_dir(dir.path()));
            assert_eq!(done.code, Some(0), "{done:?}");
            let mut spec: Value =
                serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap()).unwrap();
            spec["hostname"] = Value::Null;
            spec["ociVersion"] = Value::Null;
            spec["linux"]["maskedPaths"]
                .as_array_mut()
                .unwrap()
                .retain(|path| path != "/proc/interrupts" && !path.as_str().unwrap().starts_with("/sys/devices"));
            spec
        };
        let theirs = written(&peer(&["newer/usr/sbin/runc", "newer/usr/bin/runc"]));
        assert_eq!(written(env!("CARGO_BIN_EXE_tare").as_ref()), theirs, "{more:?}");
    }
}
