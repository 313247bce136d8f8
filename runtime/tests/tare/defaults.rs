//! What a container does not get unless it is asked for: the defaults that others have had to correct.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::json;

use crate::bundle::{Bundle, sees};

const CAPABILITIES: &str = "while read k v; do case $k in CapInh:|CapPrm:|CapEff:|CapAmb:) echo $k $v;; esac; \
                            done < /proc/self/status";
const NONE: &str = "0000000000000000";

/// The caller's session keyring is not the container's: neither its keys nor its name.
#[test]
fn cve_2014_9529_a_container_has_a_session_keyring_of_its_own() {
    let bundle = Bundle::new().set("/linux/maskedPaths", json!([]));
    let name = format!("_ses.{}", bundle.id);
    let seen = sees(bundle, "cat /proc/keys");
    assert!(seen.lines().any(|line| line.contains(&name)), "{seen}");
}

#[test]
fn cve_2016_8867_a_user_without_privileges_has_no_capabilities() {
    let bundle = Bundle::new().set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let seen = sees(bundle, CAPABILITIES);
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert!(seen.contains(&format!("{set}: {NONE}\n")), "{seen}");
    }
}

#[test]
fn cve_2022_24769_nothing_is_inheritable() {
    let bundle = Bundle::new().script(&format!("{CAPABILITIES}; exec sleep 1000"));
    bundle.done(&["run", "--detach", &bundle.id]);
    let more = bundle.tare(&["exec", "--cap", "CAP_SYS_ADMIN", &bundle.id, "sh", "-c", CAPABILITIES]);
    assert!(
        more.out.contains(&format!("CapInh: {NONE}\n")) && more.out.contains(&format!("CapAmb: {NONE}\n")),
        "{more:?}"
    );
    assert!(!more.out.contains(&format!("CapEff: {NONE}\n")), "{more:?}");
}

/// CVE-2017-16539, CVE-2018-10892, CVE-2020-8694 and others: each is empty or refuses, in the configuration we write.
#[test]
fn what_the_default_configuration_masks_says_nothing() {
    let bundle = Bundle::new();
    let list = |name: &str| -> Vec<String> { serde_json::from_value(bundle.config["linux"][name].clone()).unwrap() };
    for path in [
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/scsi",
        "/proc/interrupts",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ] {
        assert!(list("maskedPaths").iter().any(|masked| masked == path), "{path}");
    }
    let read = format!(
        "for p in {}; do if test -d $p; then ls $p; else cat $p 2>/dev/null; fi; done",
        list("maskedPaths").join(" ")
    );
    let write = "for p in /proc/sys/kernel/panic /proc/sysrq-trigger /proc/irq/default_smp_affinity; do \
                 test -e $p && (echo 0 > $p) 2>/dev/null && echo $p was written; done; true";
    assert_eq!(sees(bundle, &format!("{read}; {write}")), "");
}

/// CVE-2022-0492: what a hierarchy's release agent is, is not the container's to say.
#[test]
fn cgroups_cannot_be_written_to() {
    let seen = sees(
        Bundle::new(),
        "busybox find /sys/fs/cgroup -name release_agent; busybox mkdir /sys/fs/cgroup/x 2>&1; \
                                    busybox mkdir /sys/fs/cgroup/*/x 2>&1; true",
    );
    assert!(!seen.contains("release_agent") && seen.contains("Read-only file system"), "{seen}");
}

/// GHSA-g54h-m393-cpwq: what was not named is not allowed.
#[test]
fn devices_that_were_not_asked_for_are_refused() {
    for rules in [json!([]), json!([{"allow": false, "access": "rwm"}])] {
        let mut bundle = Bundle::new().set("/linux/resources/devices", rules).set("/root/readonly", json!(false));
        for set in ["bounding", "effective", "permitted"] {
            bundle.config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        }
        let script = "busybox mknod /tmp/disk b 8 0 && cat /tmp/disk; busybox mknod /tmp/mem c 1 1 && cat /tmp/mem; \
                      busybox mknod /tmp/null c 1 3 && cat /tmp/null && echo null is fine";
        let ended = bundle.script(script).run();
        assert_eq!(ended.out, "null is fine\n", "{ended:?}");
        assert_eq!(ended.err.matches("Operation not permitted").count(), 2, "{ended:?}");
    }
}

/// CVE-2021-43784: lengths that do not fit where others put them.
#[test]
fn what_is_long_is_done_whole_or_refused() {
    let data = format!("mode=755,{}", "x".repeat(70_000));
    let bundle =
        Bundle::new().mount(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/t", "options": [data]}));
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(said.contains("error mounting tmpfs at /t"), "{}", &said[said.len().saturating_sub(200)..]);
    let mappings: Vec<_> = (0..300).map(|n| json!({"containerID": n, "hostID": 100_000 + 2 * n, "size": 1})).collect();
    let bundle = Bundle::new()
        .in_user_namespace()
        .set("/linux/uidMappings", json!(mappings))
        .set("/linux/gidMappings", json!(mappings));
    assert_eq!(sees(bundle, "busybox wc -l < /proc/self/uid_map"), "300\n");
}

#[test]
fn a_mount_that_a_link_leads_into_proc_is_refused() {
    for (link, mount) in [
        ("/proc", json!({"type": "tmpfs", "source": "tmpfs", "destination": "/link"})),
        ("/proc/self/attr", json!({"type": "tmpfs", "source": "tmpfs", "destination": "/link"})),
        (
            "/proc/sys",
            json!({"type": "bind", "source": "config.json", "destination": "/link/kernel", "options": ["bind"]}),
        ),
    ] {
        let bundle = Bundle::new().mount(mount);
        symlink(link, bundle.path("rootfs/link")).unwrap();
        let said = bundle.fails(&["run", &bundle.id]);
        assert!(said.contains("/link"), "{link}: {said}");
        bundle.assert_gone();
    }
}

#[test]
fn cve_2019_16884_only_a_procfs_may_be_bound_at_proc() {
    let mut bundle = Bundle::new();
    bundle.config["mounts"][0] =
        json!({"type": "bind", "source": "fake", "destination": "/proc", "options": ["rbind"]});
    std::fs::create_dir(bundle.path("fake")).unwrap();
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(said.contains("at /proc: only a procfs can be mounted there"), "{said}");
    bundle.config["mounts"][0]["source"] = json!("/proc");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    let ended = bundle.script("test -d /proc/self/attr && echo real").run();
    assert_eq!(ended.out, "real\n", "{ended:?}");
}

/// CVE-2025-52565: a terminal goes to what its descriptor says, wherever the names in the root lead.
#[test]
fn a_terminal_is_not_misled_by_links() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    let mut bundle =
        Bundle::new().set("/process/terminal", json!(true)).set("/root/readonly", json!(false)).script("echo hello");
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
    std::fs::create_dir_all(bundle.path("rootfs/dev/pts")).unwrap();
    symlink(&canary, bundle.path("rootfs/dev/console")).unwrap();
    let ended = bundle.run();
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "untouched", "{ended:?}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    bundle.assert_gone();
}

/// What was checked at `create` is what `start` runs.
#[test]
fn a_configuration_that_changes_after_create_has_no_effect() {
    let mut bundle = Bundle::new().script("echo first; id");
    bundle.done(&["create", &bundle.id]);
    let folder = bundle.state_root().join(&bundle.id);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    let pid = bundle.pid();
    bundle.config["process"]["args"] = json!(["sh", "-c", "echo second"]);
    bundle.done(&["start", &bundle.id]);
    Bundle::wait_for_end_of(pid);
    assert!(bundle.output().starts_with("first\n") && !bundle.output().contains("second"), "{}", bundle.output());
}

/// CVE-2024-0132, CVE-2025-23266: a hook sees what the configuration gives it, and nothing of the image's or ours.
#[test]
fn hooks_get_their_own_environment_and_folder() {
    let hook = |out: &str| {
        json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{{ env | grep -v -e ^_= -e ^SHLVL= -e ^PWD=; pwd; }} > {out}")],
            "env": ["PATH=/usr/bin:/bin", "HOOK=1"]}])
    };
    let bundle = Bundle::new().set("/process/env", json!(["PATH=/bin", "LD_PRELOAD=/evil.so"])).script("true");
    let out = bundle.path("hook");
    let bundle = bundle.set("/hooks", json!({"createRuntime": hook(out.to_str().unwrap())}));
    let ended = crate::bundle::answer(bundle.command(&["run", &bundle.id]).env("SECRET", "ours"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = std::fs::read_to_string(out).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    let folder = lines.pop().unwrap();
    lines.sort_unstable();
    assert_eq!(lines, ["HOOK=1", "PATH=/usr/bin:/bin"]);
    assert_eq!(folder, bundle.path("").canonicalize().unwrap().to_str().unwrap());
}
