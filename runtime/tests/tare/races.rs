//! Attacks that need the right moment: somebody changes the root while a container starts in it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::bundle::Bundle;

/// Starts of a container in one test; thousands of exchanges happen in each. `TARE_TEST_ROUNDS` asks for more of them.
fn rounds() -> usize {
    std::env::var("TARE_TEST_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap())
}

/// Runs `attempt` again and again while `place` is a folder and a link to `to` in turns.
fn while_exchanged(place: &Path, to: &Path, attempt: impl Fn()) {
    let stop = AtomicBool::new(false);
    let link = place.with_extension("link");
    std::fs::create_dir_all(place).unwrap();
    symlink(to, &link).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (one, other) = (rustix::fs::CWD, rustix::fs::CWD);
                rustix::fs::renameat_with(one, place, other, &link, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        });
        (0..rounds()).for_each(|_| attempt());
        stop.store(true, Ordering::Relaxed);
    });
}

/// A folder of the host that nothing may be made in or mounted on.
struct Outside {
    dir: tempfile::TempDir,
}

impl Outside {
    fn new() -> Outside {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("target")).unwrap();
        std::fs::write(dir.path().join("target/canary"), "untouched").unwrap();
        Outside { dir }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = std::fs::read_dir(self.target()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["canary"]);
        assert_eq!(std::fs::read_to_string(self.target().join("canary")).unwrap(), "untouched");
    }
}

/// CVE-2021-30465, CVE-2024-45310: a folder on the way to a mount point is exchanged for a link out of the root between
/// looking and mounting. Wherever the mount comes to lie, it is inside; nothing is made outside.
#[test]
fn cve_2021_30465_no_mount_and_no_mount_point_lands_outside() {
    let outside = Outside::new();
    let bundle = Bundle::new()
        .set("/root/readonly", json!(false))
        .mount(json!({"type": "bind", "source": "volume", "destination": "/volume", "options": ["rbind"]}))
        .mount(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/volume/swapped/deep/er"}))
        .mount(json!({"type": "bind", "source": "config.json", "destination": "/volume/swapped/file", "options": ["bind"]}))
        .script("test ! -e /volume/swapped/canary");
    std::fs::create_dir(bundle.path("volume")).unwrap();
    // From inside the root, this link is one to the container's own folder of that name, if it has one.
    while_exchanged(&bundle.path("volume/swapped"), &outside.target(), || {
        let ended = bundle.run(); // it may fail, for what it has made is gone a moment later
        assert!(!ended.err.contains("test"), "{ended:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(outside.dir.path().to_str().unwrap()), "{mounts}");
    });
    outside.assert_untouched();
    bundle.assert_gone();
}

/// CVE-2026-41579, CVE-2026-47766, CVE-2019-18837: devices and links are made in a /dev that is exchanged for a link.
#[test]
fn no_device_is_made_outside() {
    let outside = Outside::new();
    for relative in [false, true] {
        let mut bundle = Bundle::new()
            .set("/root/readonly", json!(false))
            .set("/linux/devices", json!([{"path": "/dev/swapped/zero", "type": "c", "major": 1, "minor": 5}]))
            .script("true");
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        let to = if relative {
            Path::new("../../../../../../../../../../../..").join(outside.target().strip_prefix("/").unwrap())
        } else {
            outside.target()
        };
        while_exchanged(&bundle.path("rootfs/dev"), &to, || {
            bundle.run();
        });
        outside.assert_untouched();
    }
}

/// CVE-2025-31133: what covers a masked path is ours, whatever becomes of the container's own null device.
#[test]
fn cve_2025_31133_a_mask_holds_while_the_null_device_is_exchanged() {
    let mut bundle = Bundle::new()
        .set("/root/readonly", json!(false))
        .set("/linux/maskedPaths", json!(["/secret"]))
        .script("cat /secret");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    std::fs::create_dir(bundle.path("rootfs/dev")).unwrap();
    std::fs::write(bundle.path("rootfs/secret"), "secret").unwrap();
    while_exchanged(&bundle.path("rootfs/dev/null"), Path::new("/secret"), || {
        let ended = bundle.run();
        assert!(!ended.out.contains("secret"), "{ended:?}");
    });
}

/// Whichever of them comes first, the others say that the container is gone, or in what state it is.
#[test]
fn two_commands_on_one_container_at_once_leave_it_whole() {
    let bundle = Bundle::new().script("exec sleep 1000");
    for _ in 0..rounds() {
        bundle.done(&["create", &bundle.id]);
        std::thread::scope(|scope| {
            scope.spawn(|| bundle.tare(&["kill", &bundle.id, "KILL"]));
            scope
                .spawn(|| bundle.command(&["start", &bundle.id]).stderr(std::process::Stdio::null()).status().unwrap());
            scope.spawn(|| bundle.tare(&["delete", "--force", &bundle.id]));
            scope.spawn(|| bundle.tare(&["state", &bundle.id]));
        });
        bundle.done(&["delete", "--force", &bundle.id]);
        bundle.assert_gone();
    }
}
