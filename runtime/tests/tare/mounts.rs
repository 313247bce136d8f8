//! Mounts as a container finds them: sources, targets, attributes, owners, propagation.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::{Bundle, sees};

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": options})
}

/// A mount on the host that is gone with the test.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn new(place: std::path::PathBuf, options: &[&str]) -> HostMount {
        fs::create_dir_all(&place).unwrap();
        let mount = HostMount(place);
        let mount_it = |args: &[&str]| {
            let status = Command::new("mount").args(args).arg(&mount.0).status().unwrap();
            assert!(status.success(), "mount {args:?}");
        };
        mount_it(&["-t", "tmpfs", "tmpfs"]);
        for option in options {
            mount_it(&[option]);
        }
        mount
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-R").arg(&self.0).status();
    }
}

#[test]
fn a_tmpfs_begins_with_what_it_covers_if_that_is_asked() {
    let bundle = Bundle::new().mount(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/etc",
        "options": ["tmpcopyup"]}));
    fs::create_dir_all(bundle.path("rootfs/etc/sub")).unwrap();
    fs::write(bundle.path("rootfs/etc/sub/file"), "kept").unwrap();
    fs::set_permissions(bundle.path("rootfs/etc/sub"), fs::Permissions::from_mode(0o703)).unwrap();
    symlink("sub/file", bundle.path("rootfs/etc/link")).unwrap();
    let script = "busybox stat -c %a /etc/sub; cat /etc/link; touch /etc/new && ls /etc";
    assert_eq!(sees(bundle, script), "703\nkeptlink\nnew\nsub\n");
}

#[test]
fn a_tmpfs_has_the_mode_of_the_folder_it_covers_unless_one_is_given() {
    let tmpfs =
        |at: &str, options: &[&str]| json!({"type": "tmpfs", "source": "tmpfs", "destination": at, "options": options});
    let bundle = Bundle::new()
        .mount(tmpfs("/here", &[]))
        .mount(tmpfs("/given", &["mode=1500"]))
        .mount(tmpfs("/made/for/it", &[]));
    for folder in ["here", "given"] {
        fs::create_dir(bundle.path("rootfs").join(folder)).unwrap();
        fs::set_permissions(bundle.path("rootfs").join(folder), fs::Permissions::from_mode(0o710)).unwrap();
    }
    let script =
        "busybox stat -c %a /here /given /made/for/it; busybox grep -c ' /here .*mode=710' /proc/self/mountinfo";
    assert_eq!(sees(bundle, script), "710\n1500\n1777\n1\n");
}

#[test]
fn a_read_only_dev_is_filled_first() {
    let mut bundle = Bundle::new().set("/root/readonly", json!(false));
    let dev = bundle.config["mounts"].as_array_mut().unwrap().iter_mut().find(|mount| mount["destination"] == "/dev");
    dev.unwrap()["options"].as_array_mut().unwrap().push(json!("ro"));
    assert_eq!(sees(bundle, "test -c /dev/null && touch /dev/x 2>&1; true"), "touch: /dev/x: Read-only file system\n");
}

#[test]
fn words_on_a_bind_mount_stand_for_all_its_attributes_and_none_keeps_them() {
    let bundle = Bundle::new();
    let place = bundle.path("strict");
    let _mount = HostMount::new(place.clone(), &["-oremount,bind,noexec,nodev,noatime"]);
    let bundle = bundle
        .mount(bind("strict", "/kept", &["bind"]))
        .mount(bind("strict", "/ro", &["bind", "ro"]))
        .mount(bind("strict", "/nosuid", &["bind", "nosuid", "strictatime"]));
    let script = "while read a b c d place options e; do case $place in /kept|/ro|/nosuid) echo $place $options;; esac; \
                  done < /proc/self/mountinfo";
    let expected = "/kept rw,nodev,noexec,noatime\n/ro ro,noatime\n/nosuid rw,nosuid\n";
    assert_eq!(sees(bundle, script), expected);
}

#[test]
fn in_a_user_namespace_a_bind_mount_keeps_what_protects_its_source() {
    let bundle = Bundle::new().in_user_namespace();
    let _mount = HostMount::new(bundle.path("strict"), &["-oremount,bind,noexec,ro"]);
    let bundle = bundle.mount(bind("strict", "/kept", &["bind", "nodev"]));
    fs::create_dir(bundle.path("rootfs/kept")).unwrap();
    let script = "while read a b c d place options e; do case $place in /kept) echo $options;; esac; done < /proc/self/mountinfo";
    let mut bundle = bundle.script(script);
    let ended = bundle.run();
    assert_eq!(ended.out, "ro,nodev,noexec,relatime\n", "{ended:?}");
    bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = json!(["bind", "rw"]);
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(
        said.contains("error mounting") && said.contains("/kept") && said.contains("operation not permitted"),
        "{said}"
    );
    bundle.assert_gone();
}

#[test]
fn attributes_may_hold_for_a_whole_tree() {
    let bundle = Bundle::new();
    let place = bundle.path("tree");
    let _mount = HostMount::new(place.clone(), &[]);
    let _inner = HostMount::new(place.join("inner"), &[]);
    let bundle = bundle
        .mount(bind("tree", "/rro", &["rbind", "rro"]))
        .mount(bind("tree", "/ro", &["rbind", "ro"]))
        .mount(bind("tree", "/r", &["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnosymfollow"]));
    let script = "while read a b c d place options e; do case $place in /rro*|/ro*|/r/*) echo $place $options;; esac; \
                  done < /proc/self/mountinfo";
    let expected = "/rro ro,relatime\n/rro/inner ro,relatime\n/ro ro,relatime\n/ro/inner rw,relatime\n\
                    /r/inner rw,nosuid,nodev,noexec,noatime,nosymfollow\n";
    assert_eq!(sees(bundle, script), expected);
}

#[test]
fn a_source_inside_the_root_is_what_the_mounts_before_have_made_of_it() {
    let bundle = Bundle::new().mount(bind("shared", "/mnt", &["bind"]));
    fs::create_dir_all(bundle.path("shared/deep")).unwrap();
    fs::write(bundle.path("shared/deep/file"), "shared").unwrap();
    let rootfs = bundle.path("rootfs").canonicalize().unwrap();
    let at = |path: &str| rootfs.join(path).to_str().unwrap().to_owned();
    let bundle = bundle.mount(bind(&at("mnt/deep"), &at("again"), &["rbind"])); // both as the host sees them
    assert_eq!(sees(bundle, "cat /again/file"), "shared");
}

#[test]
fn a_target_may_be_a_file_a_link_or_a_link_to_nowhere() {
    let bundle = Bundle::new()
        .mount(bind("one", "/etc/hosts", &["bind"]))
        .mount(bind("one", "/far", &["bind"]))
        .mount(bind("one", "/linked/file", &["bind"]));
    fs::write(bundle.path("one"), "1").unwrap();
    fs::create_dir_all(bundle.path("rootfs/etc")).unwrap();
    fs::create_dir(bundle.path("rootfs/there")).unwrap();
    symlink("/made/on/the/way/hosts", bundle.path("rootfs/etc/hosts")).unwrap();
    symlink("../../../far/away", bundle.path("rootfs/far")).unwrap();
    symlink("there", bundle.path("rootfs/linked")).unwrap();
    fs::remove_file(bundle.path("rootfs/far")).unwrap();
    symlink("../../../elsewhere/away", bundle.path("rootfs/far")).unwrap();
    let script = "cat /made/on/the/way/hosts /elsewhere/away /there/file";
    assert_eq!(sees(bundle, script), "111");
}

#[test]
fn a_mount_point_that_cannot_be_made_is_told_as_such() {
    let bundle = Bundle::new().mount(bind("one", "/bin/busybox/x", &["bind"]));
    fs::create_dir(bundle.path("one")).unwrap();
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(said.contains("making the mount point /bin/busybox/x: not a directory"), "{said}");
    bundle.assert_gone();
}

/// Owners as the container sees them, through mappings of the mount's own or the container's.
#[test]
fn an_id_mapped_mount_shows_mapped_owners_and_writes_back_the_real_ones() {
    let own = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mut mapped = bind("data", "/data", &["bind"]);
    mapped["uidMappings"] = own.clone();
    mapped["gidMappings"] = own;
    let bundle = Bundle::new().mount(mapped);
    fs::create_dir(bundle.path("data")).unwrap();
    fs::write(bundle.path("data/file"), "").unwrap();
    bundle.give("data", 0);
    let seen = sees(bundle, "busybox stat -c %u:%g /data/file");
    assert_eq!(seen, "1000:1000\n");
}

#[test]
fn an_id_mapped_mount_of_a_user_namespace_has_its_mappings() {
    let bundle = Bundle::new().in_user_namespace().mount(bind("data", "/data", &["rbind", "ridmap"]));
    fs::create_dir(bundle.path("data")).unwrap();
    fs::create_dir(bundle.path("rootfs/data")).unwrap();
    fs::write(bundle.path("data/file"), "").unwrap();
    bundle.give("data", 3);
    fs::set_permissions(bundle.path("data"), fs::Permissions::from_mode(0o777)).unwrap();
    let bundle = bundle.script("touch /data/new; busybox stat -c %u:%g /data/file /data/new");
    let ended = bundle.run();
    assert_eq!((ended.code, &*ended.out), (Some(0), "3:3\n0:0\n"), "{ended:?}");
    assert_eq!(fs::metadata(bundle.path("data/new")).unwrap().uid(), 0, "on the disk");
}

#[test]
fn what_an_id_mapped_mount_needs_is_asked_for_by_name() {
    let mut mapped = bind("data", "/data", &["bind", "idmap"]);
    let said = |mount: &Value| {
        let bundle = Bundle::new().mount(mount.clone());
        let said = bundle.fails(&["run", &bundle.id]);
        bundle.assert_gone();
        said
    };
    assert!(said(&mapped).contains("needs mappings of its own, or a user namespace"), "{}", said(&mapped));
    mapped["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    assert!(said(&mapped).contains("both user and group ids"));
    let tmpfs = json!({"type": "tmpfs", "source": "x", "destination": "/data", "options": ["idmap"]});
    assert!(said(&tmpfs).contains("only supported for bind mounts"));
}

#[test]
fn a_mount_may_be_changed_by_a_later_one() {
    let bundle = Bundle::new()
        .mount(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/t", "options": ["size=4k"]}))
        .mount(json!({"destination": "/t", "options": ["remount", "ro", "size=8k"]}));
    let seen = sees(bundle, "busybox grep ' /t ' /proc/self/mountinfo");
    assert!(seen.contains(" /t ro,") && seen.contains("size=8k"), "{seen}");
}

/// Source: runtime-spec config-linux.md, "Rootfs Mount Propagation".
#[test]
fn the_root_travels_as_it_was_asked_to() {
    for (asked, expected) in [
        ("shared", "shared"),
        ("rshared", "shared"),
        ("slave", ""),
        ("private", ""),
        ("rprivate", ""),
        ("unbindable", "unbindable"),
        ("", ""),
    ] {
        let bundle = Bundle::new().set("/linux/rootfsPropagation", json!(asked));
        let script = "while read id parent device root place options rest; do case $place in /) echo $rest;; esac; \
                      done < /proc/self/mountinfo";
        let seen = sees(bundle, script);
        let kinds: Vec<&str> = seen.split("- ").next().unwrap().split_whitespace().collect();
        let kind = kinds
            .iter()
            .map(|kind| kind.split(':').next().unwrap())
            .find(|kind| !matches!(*kind, "master" | "-"))
            .unwrap_or("");
        assert_eq!(kind, expected, "{asked:?}: {seen}");
    }
}

/// What the host mounts later appears in a container whose mount is a slave of the host's, and in no other.
#[test]
fn mounts_of_the_host_come_in_where_that_was_asked() {
    let bundle = Bundle::new();
    let _host = HostMount::new(bundle.path("host"), &["--make-shared"]);
    fs::create_dir(bundle.path("host/later")).unwrap();
    let bundle = bundle
        .mount(bind("host", "/slave", &["rbind", "rslave"]))
        .mount(bind("host", "/private", &["rbind", "rprivate"]))
        .mount(bind("host", "/shared", &["rbind", "rshared"]))
        .script("read go < /slave/fifo; ls /slave/later /private/later /shared/later; busybox mount -t tmpfs x /shared/made");
    let mut bundle = bundle;
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    fs::create_dir(bundle.path("host/made")).unwrap();
    assert!(Command::new("mkfifo").arg(bundle.path("host/fifo")).status().unwrap().success());
    bundle.done(&["run", "--detach", &bundle.id]);
    let pid = bundle.pid();
    let _later = HostMount::new(bundle.path("host/later"), &[]);
    fs::write(bundle.path("host/later/here"), "").unwrap();
    fs::write(bundle.path("host/fifo"), "go\n").unwrap();
    Bundle::wait_for_end_of(pid);
    assert_eq!(bundle.output(), "/private/later:\n\n/shared/later:\nhere\n\n/slave/later:\nhere\n");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let made = bundle.path("host/made").canonicalize().unwrap();
    let _made = HostMount(made.clone());
    assert!(
        mounts.contains(&format!(" {} ", made.display())),
        "what a container mounts in a shared mount is the host's too"
    );
}

/// While a procfs without masks is below its own, a user namespace in the container may mount another.
#[test]
fn without_pivot_root_no_bare_procfs_is_left_below() {
    let mut bundle = Bundle::new().script("busybox unshare -mUrpf busybox mount -t proc proc /proc 2>&1; echo $?");
    bundle.config["linux"]["maskedPaths"].as_array_mut().unwrap().push(json!("/proc/version"));
    for set in ["bounding", "effective", "permitted"] {
        // To map root one needs it: user_namespaces(7).
        bundle.config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SETFCAP"));
    }
    for words in [&["run", "--no-pivot"][..], &["run"]] {
        let ended = bundle.tare(&[words, &[&bundle.id]].concat());
        assert!(ended.out.contains("mount: permission denied") && ended.out.ends_with("1\n"), "{words:?} {ended:?}");
    }
}

#[test]
fn without_pivot_root_the_host_is_out_of_reach_too() {
    let bundle = Bundle::new().script("ls /; ls -d /../../../etc/debian_version 2>&1; test -d /proc/self");
    let ended = bundle.tare(&["run", "--no-pivot", &bundle.id]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!Path::new("/etc/debian_version").exists() || ended.out.contains("No such file"), "{ended:?}");
    assert!(ended.out.contains("bin\n"), "{ended:?}");
    bundle.assert_gone();
}

/// Without a mount namespace of its own a container has the host's, and still its own root.
#[test]
fn in_the_hosts_mount_namespace_the_root_is_the_containers() {
    let mut bundle = Bundle::new().script("ls /").set("/mounts", json!([])).set("/linux/maskedPaths", json!([]));
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "mount");
    let bundle = bundle.set("/linux/readonlyPaths", json!([])).set("/root/readonly", json!(false));
    let ended = bundle.run();
    assert_eq!((ended.code, &*ended.out), (Some(0), "bin\ntmp\n"), "{ended:?}");
}
